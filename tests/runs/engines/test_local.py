"""Work on this machine: every piece has its outcome, whatever becomes of its process."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runs.engines.pieces import Work, loaded
from twistlm.core.errors import ConfigError
from twistlm.core.work import Failure, in_order
from twistlm.runs.engines import engine
from twistlm.runs.engines.local import Local

# The first of them pays for the server that workers are forked from, whichever it is.
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_piece_has_its_outcome_and_its_share_of_threads(jobs: int, threads: Callable[[int], None]) -> None:
    threads(6)
    with Local(jobs).open(loaded) as team:
        outcomes = dict(team.do([Work("fine"), Work("refused")]))
    fine = outcomes.pop(0)
    assert not isinstance(fine, Failure)
    assert fine[0] == "fine"
    assert fine[3] == 6 // jobs
    assert (fine[1] == os.getpid()) == (jobs == 1)
    assert outcomes == {1: Failure("TrainingError", f"refused by {6 // jobs} threads")}


def test_a_worker_that_is_killed_costs_its_piece_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pieces = [
        Work("killed"),
        Work("killed once", str(tmp_path / "once")),
        Work("bug"),
        *(Work("fine") for _ in range(4)),
    ]
    with caplog.at_level(logging.WARNING), Local(2).open(loaded) as team:
        outcomes = dict(team.do(pieces))
        again = dict(team.do([Work("fine")] * 3))
    killed, bug = outcomes.pop(0), outcomes.pop(2)
    assert isinstance(killed, Failure)
    assert "cost 3 workers: its process ended with exit code -9" in killed.message
    assert isinstance(bug, Failure)
    assert "ZeroDivisionError: by nothing" in bug.message
    assert [each[0] for each in outcomes.values() if not isinstance(each, Failure)].count("fine") == 4
    assert outcomes[1][0] == "killed once"
    # Workers are kept, with what they have loaded.
    assert max(each[2] for each in again.values() if not isinstance(each, Failure)) > 1


def test_pieces_are_taken_as_workers_become_free_and_results_put_in_order() -> None:
    taken: list[int] = []

    def pieces() -> "list[Work]":
        for number in range(100):
            taken.append(number)
            yield Work(f"fine {number}")  # type: ignore[misc]

    with Local(2).open(loaded) as team:
        found = []
        for each in in_order(team, pieces()):
            found.append(each[0])
            if len(found) == 5:
                break
    assert found == [f"fine {number}" for number in range(5)]
    assert len(taken) < 12


def test_what_cannot_be_sent_is_refused_in_one_line() -> None:
    with (
        pytest.raises(ConfigError, match="cannot be sent to other processes"),
        Local(2).open(lambda: None) as team,
    ):
        list(team.do([Work("fine")]))
    with pytest.raises(ConfigError, match="engine 'local' takes no address; it takes jobs"):
        engine("local", address="here")
    with pytest.raises(ConfigError, match="unknown engine 'locl'; did you mean 'local'"):
        engine("locl")


def test_pieces_end_with_the_process_that_gave_them(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path[:0] = [{str(Path(__file__).parents[3])!r}]\n"
        f"from tests.runs.engines.test_local import *\n"
        f"with Local(2).open(loaded) as team:\n"
        f"    list(team.do([Work('waits', {str(tmp_path / '0')!r}), Work('waits', {str(tmp_path / '1')!r})]))"
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
