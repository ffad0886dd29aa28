"""Pieces of work for tests of engines: what is sent to other processes has to be in a module."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from twistlm.core.errors import TrainingError


def loaded() -> list[int]:
    """A context that says in which process it was made, and how often it was used."""
    return [os.getpid(), 0]


@dataclass(frozen=True)
class Work:
    """What it does is in its name."""

    name: str
    place: str = ""

    def __call__(self, context: list[int]) -> tuple[str, int, int, int]:
        context[1] += 1
        if self.name == "refused":
            raise TrainingError(f"refused by {torch.get_num_threads()} threads")
        if self.name == "bug":
            raise ZeroDivisionError("by nothing")
        if self.name == "killed":
            os.kill(os.getpid(), 9)
        if self.name == "killed once" and not Path(self.place).exists():
            Path(self.place).touch()
            os.kill(os.getpid(), 9)
        if self.name == "waits":
            Path(self.place).write_text(str(os.getpid()))
            time.sleep(60)
        return self.name, context[0], context[1], torch.get_num_threads()
