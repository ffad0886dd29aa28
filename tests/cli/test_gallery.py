"""The gallery: base draws beside samples of the target, for every setting of an experiment."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.architectures import tiny_lm
from twistlm import Target
from twistlm.cli import main
from twistlm.cli.jobs import gallery as job
from twistlm.core import registry
from twistlm.core.signals import Terminated
from twistlm.models import bundled
from twistlm.potentials import Function
from twistlm.runs.config import EvaluationConfig, RunConfig
from twistlm.runs.experiments import Preset, Presets, experiment
from twistlm.training.config import TrainingConfig


def small_numbers(texts: list[str]) -> list[float]:
    return [-sum(int(word) for word in text.split()[1:]) / 150 for text in texts]


TINY = RunConfig(
    training=TrainingConfig(num_particles=16, num_updates=2, evaluate_every=2, patience=None, shrinkages=()),
    evaluation=EvaluationConfig((2,), 16, 8, during_training=False),
)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Experiments "tiny", with two pictures, and "other", with one; gone again afterwards."""
    monkeypatch.setitem(registry._ENTRIES, "experiment", {**registry.available("experiment")})

    def presets(num_tokens: int) -> Presets:
        target = Target(tiny_lm(), Function(small_numbers, log_upper_bound=0.0), "5", num_tokens, eos="ignore")
        return {"small": Preset("tiny", lambda: target, TINY)}

    @experiment("tiny", gallery=[{"num_tokens": 2}, {"num_tokens": 3}])
    def tiny(num_tokens: int) -> Presets:
        """Small numbers."""
        return presets(num_tokens)

    @experiment("other")
    def other() -> Presets:
        """The same."""
        return presets(2)


def hang(out: Path, *more: str, name: str = "tiny") -> int:
    return main(["gallery", name, "--num-samples", "1", "--out", str(out), *more])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_picture_has_both_samplers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The other experiments hang in the notebook (test_notebook.py).
    out = tmp_path / "gallery"
    assert main(["gallery", "infilling", "--preset", "smoke", "--num-samples", "2", "--out", str(out)]) == 0
    rows = [json.loads(line) for line in (out / "gallery.jsonl").read_text().splitlines()]
    found = list(dict.fromkeys(row["picture"] for row in rows))
    assert len(found) == 4
    for picture in found:
        ours = [row for row in rows if row["picture"] == picture]
        assert [row["sampler"] for row in ours] == ["base model p₀"] * 2 + ["twisted SMC, 64 particles"] * 2
        assert all(row["text"] for row in ours)
    # Even an untrained twist's particles are chosen by φ: what is shown is better than p₀'s own.
    score = {name: [r["log_phi"] for r in rows if r["sampler"].startswith(name)] for name in ("base", "twisted")}
    assert sum(score["twisted"]) > sum(score["base"])
    assert main(["gallery", "infilling", "--preset", "smoke", "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny")
def test_what_this_gallery_did_not_make_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs"
    assert hang(out) == 0
    assert {path.name for path in out.iterdir()} == {"num_tokens-2", "num_tokens-3", "gallery.jsonl"}
    shutil.copytree(out / "num_tokens-2", out / "work-of-weeks")
    before = contents(tmp_path)
    assert hang(out, "--overwrite") == 2
    assert "is not this gallery's folder (work-of-weeks is there), so it is left alone" in capsys.readouterr().err
    assert contents(tmp_path) == before
    # Nor is it what has the name of one of its runs alone.
    shutil.rmtree(out)
    shutil.copytree(bundled.folder("stories"), out / "num_tokens-3")
    before = contents(tmp_path)
    assert hang(out, "--overwrite") == 2
    assert "num_tokens-3 is not a run folder, so it is left alone" in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("policy", [[], ["--resume"], ["--overwrite"]])
def test_nothing_is_hung_in_the_folder_of_a_run(
    policy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hang(tmp_path / "made", name="other") == 0
    before = contents(tmp_path)
    assert hang(tmp_path / "made" / "run", *policy) == 2
    assert "is the folder of a run or a sweep, so it is left alone; choose another --out" in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("tiny")
def test_the_pictures_of_another_gallery_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert hang(tmp_path) == 0
    before = contents(tmp_path)
    for more in ([], ["--resume"]):
        assert hang(tmp_path, *more, name="other") == 2
        assert "gallery.jsonl exists already, of other runs" in capsys.readouterr().err
        assert contents(tmp_path) == before
    assert hang(tmp_path, "--resume") == 0
    assert contents(tmp_path) == before
    # Replaced by itself alone.
    assert hang(tmp_path, "--overwrite", name="other") == 2
    assert hang(tmp_path, "--overwrite", "--seed", "1") == 0
    assert contents(tmp_path).keys() == before.keys()
    assert contents(tmp_path) != before


@pytest.mark.usefixtures("tiny")
def test_the_same_again_goes_on_where_it_was_told_to_end_and_another_begins_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, draft = tmp_path / "gallery", tmp_path / ".gallery.new"
    assert hang(out) == 0
    before, pictures = contents(out), job._pictures

    def told_to_end(*args: Any) -> Iterator[job.Picture]:
        raise Terminated

    monkeypatch.setattr(job, "_pictures", told_to_end)
    assert hang(out, "--overwrite", "--seed", "1") == 143
    assert "terminated; the same command again continues it" in capsys.readouterr().err
    assert contents(out) == before
    # With the seconds that each update took.
    made = (draft / "num_tokens-2" / "metrics.jsonl").read_text()
    # Other runs than these.
    monkeypatch.setattr(job, "_pictures", pictures)
    other = Path(shutil.copytree(tmp_path, tmp_path / "other")) / "gallery"
    assert hang(other, "--overwrite", "--seed", "2") == 0
    assert (other / "num_tokens-2" / "metrics.jsonl").read_text() != made
    assert hang(out, "--overwrite", "--seed", "1") == 0
    assert (out / "num_tokens-2" / "metrics.jsonl").read_text() == made
    assert contents(out).keys() == before.keys()
    assert not draft.exists()
