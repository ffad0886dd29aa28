"""Work on this machine: every task has its outcome, whatever becomes of its process."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from twistlm.core.errors import TrainingError
from twistlm.runs.engines import Failure, local


def work(task: str) -> None:
    if task == "refused":
        raise TrainingError(f"refused\nby {torch.get_num_threads()} threads")
    if task == "killed":
        os.kill(os.getpid(), 9)


def wait(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_task_has_its_outcome_and_its_share_of_threads(jobs: int) -> None:
    torch.set_num_threads(6)
    try:
        outcomes = dict(local.run(work, ["fine", "refused", *(["killed"] if jobs > 1 else [])], jobs))
    finally:
        torch.set_num_threads(1)
    if jobs > 1:
        killed = outcomes.pop("killed")
        assert killed is not None
        assert "exit code -9" in killed.message
    assert outcomes == {"fine": None, "refused": Failure("TrainingError", f"refused by {6 // jobs} threads")}


def test_tasks_end_with_the_process_that_gave_them(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path[:0] = [{str(Path(__file__).parents[3])!r}]\n"
        f"from tests.runs.engines.test_local import *\n"
        f"list(local.run(wait, [{str(tmp_path / '0')!r}, {str(tmp_path / '1')!r}], 2))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        until(lambda: len([path for path in tmp_path.iterdir() if path.read_text()]) == 2)
    finally:
        parent.kill()
        parent.wait()
    children = [int(path.read_text()) for path in tmp_path.iterdir()]
    until(lambda: not any(map(alive, children)))


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def until(condition: Callable[[], bool], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
