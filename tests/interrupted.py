"""Trainings that are told to end within an update."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from twistlm.training import trainer


@contextmanager
def interrupted(monkeypatch: pytest.MonkeyPatch, update: int) -> Iterator[None]:
    """A training within is told to end in that update, and leaves a checkpoint of every one before."""
    original, calls = trainer.score, iter(range(update + 1))

    def score(*arguments: Any, **keywords: Any) -> Any:
        if next(calls) == update:
            raise KeyboardInterrupt
        return original(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "score", score)
        patch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            yield
