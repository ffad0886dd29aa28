"""What the system does to commands in the middle: one clear line, its exit code, and what was there is there."""

import ctypes
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.kills import content
from twistlm.cli import main

TINY = ["toxicity", "--preset", "smoke", "--num-tokens", "3"]
EVENT = ["Once upon a time", "--regex", "e", "--thresholds", "1", "--num-tokens", "3", "--num-draws", "256"]
COMMANDS = {
    "collect": ["collect", *TINY, "--max-draws", "1024"],
    "train": ["train", *TINY, "--num-updates", "3", "--num-draws", "512", "--method", "rl"],
    "probability": ["probability", *EVENT, "--max-rounds", "1", "--num-samples", "512"],
    "certify": ["certify", *TINY, "--num-draws", "512", "--num-samples", "16", "--num-particles", "4"],
}
NAMES = {"collect": "draws.safetensors", "certify": "certificate.json"}


@pytest.fixture(autouse=True)
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWISTLM_PROGRESS", "0")


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system lets no file grow beyond that (EFBIG), as a full disk lets none (ENOSPC)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 80 MiB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "none", place], capture_output=True).returncode:
        pytest.skip("the system lets us mount nothing")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(path: Path) -> None:
    """Write to a file until there is no room."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def refused(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that ends with this code."""
    capsys.readouterr()
    assert main(arguments) == code, capsys.readouterr().err
    lines = [
        line for line in capsys.readouterr().err.splitlines() if not line.startswith(("WARNING", "price", "round"))
    ]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def resumed(command: str, out: Path) -> list[str]:
    more = ["--resume"] if command != "certify" and out.exists() else []
    return [*COMMANDS[command], "--out", str(out), *more]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_may_not_grow_is_one_line_and_goes_on_afterwards(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = NAMES.get(command, "out")
    whole, out = tmp_path / f"whole-{name}", tmp_path / name
    assert main([*COMMANDS[command], "--out", str(whole)]) == 0
    with files_of_at_most(900):
        said = refused([*COMMANDS[command], "--out", str(out)], 1, capsys)
    assert "cannot be written (" in said
    assert not list(tmp_path.rglob("*.tmp"))
    assert main(resumed(command, out)) == 0
    assert content(out) == content(whole)


def test_a_full_disk_leaves_what_was_there(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draws, run, ballast = disk / "draws.safetensors", disk / "run", disk / "ballast"
    assert main([*COMMANDS["train"], "--out", str(run)]) == 0
    assert main(["collect", *TINY, "--max-draws", "512", "--out", str(draws)]) == 0
    before = content(disk)
    fill(ballast)
    said = refused(resumed("collect", draws), 1, capsys)
    assert "No space left on device" in said
    # Refused before anything is begun, or when it cannot be written; either way the old one stands.
    again = refused([*COMMANDS["train"], "--seed", "1", "--out", str(run), "--overwrite"], 1, capsys)
    assert "make room" in again or "No space left on device" in again
    ballast.unlink()
    assert content(disk) == before
    assert sorted(path.name for path in disk.iterdir()) == ["draws.safetensors", "run"]
    assert main(resumed("collect", draws)) == 0


def test_a_file_system_that_is_read_only(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, draws = disk / "run", disk / "draws.safetensors"
    assert main([*COMMANDS["train"], "--out", str(run)]) == 0
    before = content(disk)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for arguments in (
        ["sample", str(run), "--num-samples", "2"],
        [*COMMANDS["train"], "--out", str(run), "--overwrite"],
        [*COMMANDS["collect"], "--out", str(draws)],
        [*COMMANDS["certify"], "--out", str(disk / "certificate.json")],
        [*COMMANDS["probability"], "--out", str(disk / "found")],
    ):
        assert "ead-only file system" in refused(arguments, 1, capsys), arguments
    assert content(disk) == before


def test_a_folder_that_one_may_not_write_to(tmp_path: Path) -> None:
    """Root may do everything, unless its right to (CAP_DAC_OVERRIDE) is dropped for the command."""
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(0o555)

    def drop() -> None:
        ctypes.CDLL(None, use_errno=True).prctl(24, 1, 0, 0, 0)

    with subprocess.Popen(["touch", place / "file"], stderr=subprocess.DEVNULL, preexec_fn=drop) as touch:
        touch.wait()
    if (place / "file").exists():
        pytest.skip("the system lets us drop no right")
    command = [sys.executable, "-m", "twistlm", *COMMANDS["collect"], "--out", str(place / "draws.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=drop)
    assert done.returncode == 1
    assert "Permission denied" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(place.iterdir())


@contextmanager
def deleted_when(path: Path, there: Callable[[], bool]) -> Iterator[None]:
    """Something is deleted as soon as that is so."""
    over = threading.Event()

    def watch() -> None:
        while not over.is_set() and not there():
            time.sleep(0.001)
        shutil.rmtree(path, ignore_errors=True)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_search_whose_folder_is_deleted_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found"
    long = [*COMMANDS["probability"][:-4], "--max-rounds", "1", "--num-samples", "20000", "--out", str(out)]
    with deleted_when(out, lambda: (out / "state" / "climb.safetensors").exists()):
        said = refused(long, 1, capsys)
    assert str(out) in said
    assert not (out / "probability.json").exists()


def test_a_clock_that_is_set_back_loses_no_samples(tmp_path: Path) -> None:
    """Nothing is decided by the time of day; files that are put aside are named by it."""
    run = tmp_path / "run"
    assert main([*COMMANDS["train"], "--out", str(run)]) == 0
    drawn = []
    for seed in range(3):
        assert main(["sample", str(run), "--num-samples", "2", "--seed", str(seed)]) == 0
        drawn.append((run / "samples.jsonl").read_text())
        os.utime(run / "samples.jsonl", (1e9, 1e9))
    kept = sorted(path.read_text() for path in (run / "samples").rglob("samples.jsonl"))
    assert kept == sorted(drawn[:2])
