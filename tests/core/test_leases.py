"""One writer, where the system's locks are not shared: two machines with one folder, each a process here.

Each of these processes has locks of its own and says that it runs on another machine; the folder is the real one.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from twistlm.core import holds, leases
from twistlm.core.errors import LeaseLostError, RunError
from twistlm.core.folders import writing, writing_file
from twistlm.core.storage import save_json

MACHINE = """
import sys, time
from pathlib import Path
from filelock import FileLock
from twistlm.core import folders, leases
from twistlm.core.errors import TwistError
from twistlm.core.folders import writing, writing_file
from twistlm.core.storage import save_json

machine, place = sys.argv[1], Path(sys.argv[2])
leases.RENEW_SECONDS, leases.EXPIRE_SECONDS = 0.1, 1.5
leases.kernel = lambda: machine
folders.FileLock = lambda file: FileLock(f"{file}.{machine}")
"""
# Writes as long as it may.
WRITER = """
try:
    with writing(place) as draft:
        for number in range(10_000):
            save_json(draft.path / f"{machine}.json", number)
            time.sleep(0.01)
except TwistError as error:
    sys.exit(str(error))
"""
# Twenty races: both are at each start before either goes on.
RACER = """
other = "b" if machine == "a" else "a"
for number in range(20):
    (place / f"{number}-{machine}").touch()
    while not (place / f"{number}-{other}").exists():
        pass
    hold = writing_file if number % 2 else writing
    try:
        with hold(place / f"to-{number}"):
            begun = time.monotonic()
            time.sleep(0.05)
            print(number, begun, time.monotonic(), flush=True)
    except TwistError as error:
        assert "is being written by" in str(error), error
"""


def machine(name: str, place: Path, code: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", MACHINE + code, name, str(place)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def until(true: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(leases, "EXPIRE_SECONDS", 1.5)


def test_of_two_machines_never_both(tmp_path: Path) -> None:
    processes = [machine(name, tmp_path, RACER) for name in "ab"]
    said = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    held: dict[int, list[tuple[float, float]]] = {}
    for out, _ in said:
        for line in out.splitlines():
            number, begun, ended = line.split()
            held.setdefault(int(number), []).append((float(begun), float(ended)))
    assert len(held) == 20
    for spans in held.values():
        first, *second = sorted(spans)
        assert all(first[1] <= begun for begun, _ in second)


@pytest.mark.usefixtures("quick")
def test_a_live_one_on_another_machine_is_not_disturbed(tmp_path: Path) -> None:
    there = machine("a", tmp_path / "place", WRITER)
    try:
        until((tmp_path / "place" / "a.json").exists)
        begun = time.monotonic()
        with pytest.raises(RunError, match=f"is being written by process {there.pid} on "), writing(tmp_path / "place"):
            pass
        assert time.monotonic() - begun < leases.EXPIRE_SECONDS, "its first sign is enough"
        assert there.poll() is None
    finally:
        there.kill()
        there.communicate()


def test_what_is_taken_from_a_stopped_one_it_never_writes_again(tmp_path: Path) -> None:
    place = tmp_path / "place"
    one = machine("a", place, WRITER)
    other = None
    try:
        until((place / "a.json").exists)
        one.send_signal(signal.SIGSTOP)
        before = (place / "a.json").read_bytes()
        other = machine("b", place, WRITER)
        begun = time.monotonic()
        until((place / "b.json").exists)
        assert time.monotonic() - begun > 1.4
        one.send_signal(signal.SIGCONT)
        _, errors = one.communicate(timeout=30)
        assert errors.count("\n") == 1
        assert f"{place} was taken over by process {other.pid} on " in errors
        assert "this process writes nothing more to it" in errors
        # The write that was under way when it was stopped may have landed, and no other.
        assert int((place / "a.json").read_bytes()) - int(before) in (0, 1)
        count = json.loads((place / "b.json").read_text())
        until(lambda: json.loads((place / "b.json").read_text()) > count + 10)
    finally:
        for process in (one, other):
            if process is not None:
                process.kill()
                process.communicate()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff"], ids=["killed", "empty", "older", "damaged"])
def test_of_an_ended_one_on_another_machine(content: bytes | None, tmp_path: Path) -> None:
    """Waited for, as is what cannot be read; then everything is as if it had never been."""
    place = tmp_path / "place"
    if content is None:
        killed = machine("a", place, WRITER)
        until((place / "a.json").exists)
        killed.kill()
        killed.communicate()
    else:
        place.mkdir()
        (place / ".lock.owner").write_bytes(content)
    begun = time.monotonic()
    with writing(place) as draft:
        assert 1.4 < time.monotonic() - begun < 4
        save_json(draft.path / "b.json", 1)
    assert not list(place.glob(".lock.owner*"))


def test_of_an_ended_one_on_this_machine_at_once(tmp_path: Path) -> None:
    code = "import sys, os; from pathlib import Path; from twistlm.core.folders import writing\n"
    code += "with writing(Path(sys.argv[1])) as d: (d.path / 'x').touch(); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "place")]).returncode == -9
    assert (tmp_path / "place" / ".lock.owner").exists()
    begun = time.monotonic()
    with writing(tmp_path / "place"):
        pass
    assert time.monotonic() - begun < 1
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["x"]


def lost(path: Path) -> Callable[[], bool]:
    return lambda: all(each.lost for each in holds.of(path))


@pytest.mark.usefixtures("quick")
def test_a_lease_that_is_deleted_is_lost(tmp_path: Path) -> None:
    def write() -> None:
        with writing(tmp_path) as draft:
            save_json(draft.path / "before.json", 1)
            (tmp_path / ".lock.owner").unlink()
            until(lost(tmp_path))
            save_json(draft.path / "after.json", 1)

    with pytest.raises(LeaseLostError, match=r"has lost its lock: .*\.lock\.owner was deleted"):
        write()
    assert not (tmp_path / "after.json").exists()
    assert not holds.of(tmp_path)


@pytest.mark.usefixtures("quick")
def test_nothing_is_cleaned_that_another_has_taken(tmp_path: Path) -> None:
    """Neither the new folder of a replacement, nor the file in place of another, nor the lock."""
    place, file = tmp_path / "place", tmp_path / "file"
    place.mkdir()
    (place / "old").touch()
    file.touch()

    def replace() -> None:
        with writing(place, replace=True) as draft:
            (draft.path / "work").touch()
            (place / ".lock.owner").write_bytes(leases.Claim.mine().written(3))
            until(lambda: draft.is_lost)

    def replace_file() -> None:
        with writing_file(file, replace=True) as path:
            path.touch()
            (tmp_path / ".file.lock.owner").unlink()
            until(lost(file))

    with pytest.raises(LeaseLostError):
        replace()
    assert (tmp_path / ".place.new" / "work").exists()
    assert (place / ".lock").exists()
    with pytest.raises(LeaseLostError):
        replace_file()
    assert (tmp_path / ".file.new").exists()


@pytest.mark.usefixtures("quick")
def test_held_for_longer_than_it_would_last(tmp_path: Path) -> None:
    with writing(tmp_path) as draft:
        counts = set()
        end = time.monotonic() + 2 * leases.EXPIRE_SECONDS
        while time.monotonic() < end:
            save_json(draft.path / "some.json", 1)
            counts.add((tmp_path / ".lock.owner").read_bytes().splitlines()[1])
            time.sleep(0.02)
        assert len(counts) > 10
    assert not list(tmp_path.glob(".lock*"))
