"""What `twistlm sample` and `twistlm demo` leave in a run's folder, which somebody else may be about to write."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import twistlm
from tests.core.test_folders import contents
from twistlm import Run, RunConfig, Target
from twistlm.cli import main
from twistlm.cli.jobs.demo import demo
from twistlm.core.errors import RunError
from twistlm.core.folders import writing
from twistlm.potentials import Classifier
from twistlm.runs.config import EvaluationConfig
from twistlm.runs.experiments import Preset
from twistlm.runs.folder import RunFolder

TRAINING: dict[str, Any] = {"twist": "lexical", "num_updates": 1, "num_particles": 8, "num_draws": 64}


def target() -> Target:
    return Target("stories", Classifier("sentiment", "positive"), "Once upon a time, there was a", 3)


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that samples were saved in, each of which nobody else could write to at that moment."""
    save, found = RunFolder.save_samples, []

    def alone(folder: RunFolder, *given: Any) -> Path:
        with pytest.raises(RunError, match="is being written"), writing(folder.path):
            pass
        found.append(folder.path)
        return save(folder, *given)

    monkeypatch.setattr(RunFolder, "save_samples", alone)
    return found


def test_samples_are_kept_while_nobody_else_writes(
    saved: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They went with the folder that another took the place of, or were of two runs at once."""
    out = tmp_path / "run"
    twistlm.train(target(), out=out, **TRAINING)
    assert main(["sample", str(out), "--num-samples", "2"]) == 0
    assert saved == [out]
    assert (out / "samples.jsonl").exists()
    before, drawn = contents(out), []
    draw: Callable[..., Any] = Run.sample
    monkeypatch.setattr(Run, "sample", lambda *given, **more: drawn.append(1) or draw(*given, **more))
    with writing(out):
        assert main(["sample", str(out), "--num-samples", "2"]) == 2
    assert f"{out} is being written" in capsys.readouterr().err
    assert not drawn, "it is refused before anything is drawn"
    assert contents(out) == before


def test_so_is_what_the_demo_finds(saved: list[Path], tmp_path: Path) -> None:
    config = RunConfig().changed(**TRAINING)
    config = RunConfig(config.twist, training=config.training, num_draws=64, evaluation=EvaluationConfig((2,), 16, 8))
    demo(Preset("tiny", target, config), tmp_path / "run", 0, "refuse")
    assert saved == [tmp_path / "run"]
    assert {"certificate.json", "samples.jsonl", "report.html"} <= contents(tmp_path / "run").keys()
