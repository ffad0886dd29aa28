"""What a run folder's files say comes back with types, and what a sweep holds to is not lost to a damaged mark."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from tests.runs.sweeps.test_pooled import certificate
from twistlm.cli import main
from twistlm.core.errors import RunError
from twistlm.core.storage import as_json, save_lines
from twistlm.models import bundled
from twistlm.runs.config import RunConfig
from twistlm.runs.folder import AskedRun, RunFolder
from twistlm.runs.texts import TextSamples

FOUND, OTHER = certificate(-4.0, -2.0, -3.5, -2.5), certificate(-5.0, -2.0, -3.5, -2.5)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    path = tmp_path / "run"
    path.mkdir()
    found = RunFolder(path)
    found.save_twist({"weight": torch.zeros(2)}, {})
    return found


def test_a_mark_is_what_its_field_says(folder: RunFolder) -> None:
    evaluations, mark = folder.evaluations, folder.path / "done.json"
    evaluations.add({"after": OTHER}, {"seed": 1})
    assert not evaluations.is_done
    evaluations.finish({"after": FOUND})
    assert evaluations.is_done
    assert evaluations.finished().certificates == {"after": FOUND}
    # What was there before is not lost, nor what the sweep found if another is made.
    assert [each.certificates["after"] for each in evaluations.others()] == [OTHER]
    evaluations.add({"after": OTHER}, {"seed": 2})
    assert [each.certificates["after"] for each in evaluations.others()] == [FOUND, OTHER]
    assert evaluations.finished().certificates == {"after": FOUND}
    mark.write_text("{}")
    with pytest.raises(RunError, match=r"done\.json is damaged.*delete it and sweep again"):
        evaluations.finished()


@pytest.mark.parametrize("text", ["{", "[]", '{"certificates": {"after": {"bounds": 3}}}', None])
def test_a_certificate_that_nothing_else_repeats_is_not_lost(folder: RunFolder, text: str | None) -> None:
    evaluations, current = folder.evaluations, folder.path / "certificate.json"
    evaluations.add({"after": FOUND}, {"seed": 1})
    text = current.read_text().replace("-4.0", "-3.0") if text is None else text
    current.write_text(text)
    evaluations.add({"after": OTHER}, {"seed": 2})
    evaluations.add({"after": OTHER}, {"seed": 2})
    kept = [path.read_text() for path in sorted(evaluations.folder.iterdir())]
    assert text in kept
    assert len(kept) == 4
    found = evaluations.current()
    assert found is not None
    assert found.certificates == {"after": OTHER}


def test_a_damaged_evaluation_hides_no_other(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    evaluations, current = folder.evaluations, folder.path / "certificate.json"
    evaluations.add({"after": OTHER}, {"seed": 1})
    own = current.read_text()
    for text in ("{", "[]", '{"certificates": {"after": {"bounds": 3}}}'):
        damaged = evaluations.folder / "20200101T000000.json"
        damaged.parent.mkdir(exist_ok=True)
        damaged.write_text(text)
        current.write_text(own)
        caplog.clear()
        assert evaluations.others() == []
        assert "20200101T000000.json" in caplog.text
        assert caplog.records[0].message.endswith("; restore it, or delete it [TW604]")
        # Of the one that counts the remedy is one that works.
        current.write_text(text)
        remedy = f"restore it, or delete it and make it again with: twistlm evaluate {folder.path}$"
        with pytest.raises(RunError, match=f"certificate.json.*; {remedy}") as raised:
            evaluations.current()
        assert "--overwrite" not in str(raised.value)
    current.unlink()
    evaluations.add({"after": FOUND}, {"seed": 1})
    assert evaluations.current() is not None


def test_samples_come_back_as_they_were(folder: RunFolder) -> None:
    moves = torch.tensor([[1.0, -math.inf]])
    weight, log_phi, log_p = torch.ones(1), torch.tensor([-math.inf]), torch.tensor([-3.0])
    tokens, ended = torch.tensor([[0, 1]]), torch.tensor([False])
    drawn = TextSamples([" a b"], tokens, ended, weight, log_phi, log_p, -1.0, [[" a", " b"]], moves, moves)
    folder.save_samples(drawn, drawn)
    (row,), (base,) = folder.load_samples()
    assert row == base
    assert (row.text, row.sampler, row.weight, row.log_phi, row.log_p) == (" a b", "", 1.0, -math.inf, -3.0)
    assert (list(row.pieces), list(row.log_w_moves)) == ([" a", " b"], [1.0, -math.inf])
    folder.save_samples({"one": drawn, "two": drawn})
    assert [each.sampler for each in folder.load_samples()[0]] == ["one", "two"]
    # Of an older version.
    save_lines(folder.path / "samples.jsonl", [{"text": "x"}])
    ((old,), _) = folder.load_samples()
    assert math.isnan(old.weight)
    assert not old.pieces


def test_a_history_knows_the_lines_it_needs(folder: RunFolder) -> None:
    estimate = {"value": 1.0, "low": "-inf", "high": 2.0, "n": 3}
    for row in (
        {"kind": "start", "log_psi": 0.0},
        {"kind": "update", "update": 1, "seconds": 2.0, "loss": 0.1},
        {"kind": "evaluation", "update": 1, "held_out": estimate},
        {"kind": "certificate", "update": 1, "certificate": as_json(FOUND), "texts": [" a"]},
    ):
        folder.append_metrics(row)
    history = folder.load_history()
    assert history.seconds == [2.0]
    ((at, held_out, f),) = [(look.update, look.held_out, look.f) for look in history.looks]
    assert (at, held_out.low, f) == (1, -math.inf, None)
    assert history.certificates == {1: FOUND}
    assert len(folder.metrics()) == 4
    folder.append_metrics({"kind": "evaluation", "update": 2, "held_out": estimate | {"value": None}})
    folder.append_metrics({"kind": "start", "log_psi": 0.0})
    with pytest.raises(RunError, match=r"at line 5 is damaged or of another version: held_out\.value"):
        folder.load_history()


@pytest.mark.parametrize("command", ["train toxicity --preset smoke --num-tokens 3", "demo --preset smoke"])
@pytest.mark.parametrize("policy", ["--overwrite", "--resume"])
def test_a_language_model_is_no_run(
    command: str, policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(bundled.folder("stories"), tmp_path / "model"))
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    assert main([*command.split(), "--out", str(model), policy]) == 2
    assert capsys.readouterr().err == f"error: {model} is not a run folder, so it is left alone; choose another --out\n"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("exists", ["resume", "overwrite"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 1, "run": {', r"config\.json is corrupt \(.*\); restore it, or delete the folder"),
        ("\0\udcff", r"config\.json is corrupt \(.*\); restore it, or delete the folder"),
        ("[]", "is not a run folder, so it is left alone"),
        ('{"format": 1}', "is not a run folder, so it is left alone"),
        ('{"format": "pt", "run": {}}', "is not a run folder, so it is left alone"),
        ('{"model_type": "gpt2", "run": {}}', "is not a run folder, so it is left alone"),
    ],
)
def test_what_may_be_no_run_is_left_alone(exists: str, text: str, message: str, folder: RunFolder) -> None:
    (folder.path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    before = {path: path.read_bytes() for path in folder.path.iterdir()}
    with (
        pytest.raises(RunError, match=message),
        RunFolder.writing(folder.path, AskedRun(None, RunConfig()), exists),
    ):
        pass
    assert {path: path.read_bytes() for path in folder.path.iterdir()} == before


def test_a_run_of_another_format_is_a_run(folder: RunFolder) -> None:
    (folder.path / "config.json").write_text(json.dumps({"format": 99, "run": {}}))
    with pytest.raises(RunError, match="written in format 99"):
        RunFolder.open(folder.path)
    RunFolder.check(folder.path, "overwrite")


def test_a_run_that_is_asked_otherwise_says_in_what(tmp_path: Path) -> None:
    def asked(text: str, seed: int, method: str, model: str = "stories", informed: str = "off") -> AskedRun:
        target = {"model": model, "potential": {"name": "jigsaw"}, "prompts": [{"name": "1", "content": text}]}
        return AskedRun(target, RunConfig(seed=seed).changed(method=method, informed=informed))

    with RunFolder.writing(tmp_path, asked("Once upon", 0, "ctl"), "resume") as folder:
        save_lines(tmp_path / "metrics.jsonl", [])
        for name in ("checkpoint", "twist"):
            getattr(folder, name).touch()
    for given, said in (
        (asked("Once upon", 0, "ctl", informed="auto"), 'another run (run.training.informed "off", now "auto")'),
        (asked("x" * 99, 0, "ctl"), f'(target.prompts.0.content "Once upon", now "{"x" * 58}…); resume with'),
        (
            asked("The dog", 1, "dpg", "smollm2"),
            'another run, target (target.model "stories", now "smollm2"; target.prompts.0.content "Once upon", now '
            '"The dog"; run.training.loss "ctl", now "dpg"; run.seed 0, now 1); resume with the settings',
        ),
        (AskedRun(None, asked("", 1, "dpg").run), 'run, target (target.model "stories", now none; target.potential'),
        (AskedRun(None, asked("", 1, "dpg").run), "; and 2 more); resume"),
    ):
        with pytest.raises(RunError) as refused, RunFolder.writing(tmp_path, given, "resume"):
            pass
        assert said in str(refused.value)


def test_what_is_not_of_a_run_is_not_deleted_with_it(folder: RunFolder) -> None:
    def overwritten() -> None:
        with RunFolder.writing(folder.path, asked, "overwrite") as draft:
            (draft.path / "metrics.jsonl").touch()
            for name in ("checkpoint", "twist"):
                (draft.path / f"{name}.safetensors").touch()

    asked, path = AskedRun(None, RunConfig()), folder.path
    (path / "config.json").write_text(json.dumps(asked.as_dict()))
    others = ["notes.md", "second-run/config.json", "report/mine.txt", "evaluations", "samples/mine.jsonl", "README.md"]
    for name in others:
        file = path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
        with pytest.raises(RunError, match=f"run holds {name.removesuffix('/config.json')}, which is not of a run"):
            overwritten()
        assert file.read_text() == "mine"
        # Going on deletes nothing.
        RunFolder.check(path, "resume")
        file.unlink()
        if file.parent != path:
            file.parent.rmdir()
    # What commands leave in a run's folder, and what is hidden, goes with it.
    places = [".DS_Store", "report.html", "report/bounds.png", "report/run-ess.pdf", "done.json", "certificate.json"]
    samples = [f"{place}{name}.jsonl" for place in ("", "samples/2026/") for name in ("samples", "base_samples")]
    for name in [
        *places,
        *samples,
        "prompt_samples.jsonl",
        "diagnostics.json",
        "evaluations/20260101T000000_0002.json",
    ]:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("{}")
    overwritten()
    assert {each.name for each in path.iterdir()} == {
        *("config.json", "metrics.jsonl", "checkpoint.safetensors", "twist.safetensors")
    }
