"""Work in other processes, here and by a real Ray: results in order, refusals, and what becomes of a lost worker."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from tests.runs.pieces import Work, loaded
from twistlm.core.errors import ConfigError, ProcessError, TrainingError
from twistlm.core.work import HERE, Engine
from twistlm.runs.engines import Local, Ray, engine

# The first of them pays for the server that workers are forked from, whichever it is.
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    yield
    ray.shutdown()


@pytest.mark.parametrize(
    ("made", "share"), [(HERE, 6), (Local(1), 6), (Local(2), 3), (Ray(2), 1)], ids=["here", "one", "two", "ray"]
)
def test_results_come_in_order_from_contexts_that_are_kept(
    made: Engine, share: int, threads: Callable[[int], None]
) -> None:
    threads(6)
    with made.start(loaded) as workers, workers.start(loaded) as same:
        assert same is workers
        found = list(workers.do([Work(f"fine {number}") for number in range(20)], loaded()))
        with pytest.raises(TrainingError, match="refused by"):
            list(workers.do([Work("fine"), Work("refused")], loaded()))
        with pytest.raises(RuntimeError if workers.has_workers else ZeroDivisionError, match="by nothing"):
            list(workers.do([Work("bug")], loaded()))
    assert [each[0] for each in found] == [f"fine {number}" for number in range(20)]
    assert {each[1] == os.getpid() for each in found} == {not workers.has_workers}
    assert max(each[2] for each in found) >= 10
    assert {each[3] for each in found} == {share}


def test_a_lost_worker_ends_the_work_in_one_line() -> None:
    said = r"a worker has ended in the middle of its work \(exit code -9, for want of memory"
    with pytest.raises(ProcessError, match=said), Local(2).start(loaded) as workers:
        list(workers.do([Work("fine"), Work("killed"), *[Work("fine")] * 20], loaded()))


def test_a_piece_that_lost_its_worker_is_done_by_another_one_of_a_cluster(tmp_path: Path) -> None:
    with Ray(1).start(loaded) as workers:
        pieces = [Work("fine"), Work("killed once", str(tmp_path / "once")), Work("fine")]
        assert [each[0] for each in workers.do(pieces, loaded())] == ["fine", "killed once", "fine"]
        with pytest.raises(ProcessError, match="ended in the middle of its work"):
            list(workers.do([Work("killed")], loaded()))


@pytest.mark.parametrize("made", [HERE, Local(2)])
def test_pieces_are_taken_as_they_are_needed(made: Engine) -> None:
    taken: list[int] = []

    def pieces() -> Iterator[Work]:
        for number in range(100):
            taken.append(number)
            yield Work(f"fine {number}")

    with made.start(loaded) as workers:
        results = workers.do(pieces(), loaded())
        assert [next(results)[0] for _ in range(5)] == [f"fine {number}" for number in range(5)]
        results.close()
        assert len(taken) <= 12
        # Further work for the same workers.
        assert next(workers.do([Work("fine")], loaded()))[0] == "fine"


def test_what_cannot_be_sent_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="cannot be sent to other processes"), Local(2).start(lambda: None):
        pass
    with pytest.raises(ConfigError, match="engine 'local' takes no address; it takes jobs"):
        engine("local", address="here")
    with pytest.raises(ConfigError, match="unknown engine 'locl'; did you mean 'local'"):
        engine("locl")


def test_pieces_end_with_the_process_that_gave_them(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}]\n"
        f"from tests.runs.test_engines import *\n"
        f"with Local(2).start(loaded) as workers:\n"
        f"    list(workers.do([Work('waits', {str(tmp_path / '0')!r}), Work('waits', {str(tmp_path / '1')!r})], None))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        until(lambda: len([path for path in tmp_path.iterdir() if path.read_text()]) == 2)
    finally:
        parent.kill()
        parent.wait()
    children = [int(path.read_text()) for path in tmp_path.iterdir()]
    until(lambda: not any(map(alive, children)))


def test_ray_takes_closures_and_joins_no_cluster_that_it_is_not_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    with Ray(1).start(lambda: [0, 41]) as workers:
        assert list(workers.do([lambda context: context[1] + 1], [])) == [42]
    ray.shutdown()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"no Ray cluster answers at RAY_ADDRESS=127.0.0.1:1"), Ray().start(loaded):
        pass


@pytest.mark.nightly
def test_a_collection_survives_losing_a_worker_and_a_machine() -> None:
    """Two real raylets on this machine. `python -m tests.cluster` does more."""
    words = [sys.executable, "-m", "tests.cluster", "collect", "--faults", "2", "--kinds", "worker", "machine"]
    told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.count("0 files differ") == 2


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
