"""Trainings that end before their time, and go on: what comes out is what comes out of an undisturbed one."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.forked import start
from tests.interrupted import interrupted
from tests.training.test_trainer import CONFIG, comparable, tiny_target
from twistlm import train
from twistlm.core.registry import available
from twistlm.training import trainer


def as_if_nothing_had_been(
    started: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update: int
) -> None:
    """A training, by name and what to do with what is there, comes out the same if it ends in an update and resumes."""
    started("whole")
    with interrupted(monkeypatch, update):
        started("cut")
    assert (tmp_path / "cut" / "checkpoint.safetensors").exists()
    started("cut", "resume")
    for name in ("twist.safetensors", "checkpoint.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("settings", [{"averaging": 0.9}, {"decay_after": 4}], ids=["averaging", "decay"])
def test_an_interrupted_training_ends_as_if_nothing_had_been(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(name: str, exists: str = "refuse") -> None:
        train(tiny_target(), config=CONFIG, out=tmp_path / name, exists=exists, num_updates=12, seed=1, **settings)

    as_if_nothing_had_been(started, tmp_path, monkeypatch, 7)


@pytest.mark.parametrize("optimiser", list(available("optimiser")))
def test_killed_at_any_moment_it_resumes_bit_for_bit(optimiser: str, tmp_path: Path) -> None:
    rows = killed(tmp_path, optimiser)
    assert comparable(rows[0]) == comparable(rows[1])


def learn(out: Path, optimiser: str) -> None:
    """What is killed: every update leaves a checkpoint."""
    trainer.CHECKPOINT_SECONDS = 0.0
    train(tiny_target(), config=CONFIG, optimiser=optimiser, num_minibatches=3, out=out, exists="resume")


def killed(tmp_path: Path, optimiser: str) -> list[list[dict]]:
    """Metrics of a run that was killed several times, and of one that was not; all else of them is the same."""
    whole = start(learn, tmp_path / "whole", optimiser)
    whole.join(300)
    assert whole.exitcode == 0
    kills, milestone = 0, ["draws.safetensors", "metrics.jsonl", "checkpoint.safetensors"]
    out = tmp_path / "killed"
    while True:
        process = start(learn, out, optimiser)
        # First as soon as each file appears, then after ever longer pieces of training.
        deadline = time.monotonic() + 120
        if kills < len(milestone):
            while not (out / milestone[kills]).exists() and process.is_alive() and time.monotonic() < deadline:
                time.sleep(0.002)
        else:
            seen = len((out / "metrics.jsonl").read_text().splitlines())
            grown = seen
            while grown < seen + 3 and process.is_alive() and time.monotonic() < deadline:
                time.sleep(0.01)
                text = (out / "metrics.jsonl").read_text()
                grown = len(text.splitlines())
        if not process.is_alive():
            break
        process.kill()
        process.join()
        kills += 1
        if kills == 6:
            process = start(learn, out, optimiser)
            process.join(300)
            assert process.exitcode == 0
            break
    assert kills >= 3, "nothing was interrupted"
    for name in ("twist.safetensors", "draws.safetensors", "checkpoint.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    return [
        [json.loads(line) for line in (p / "metrics.jsonl").read_text().splitlines()] for p in (out, tmp_path / "whole")
    ]
