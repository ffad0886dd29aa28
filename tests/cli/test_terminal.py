"""What is printed, by whom it is read, and how a command ends when it is told to."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.forked import Command
from twistlm import Target, train
from twistlm.cli import main
from twistlm.core import progress
from twistlm.potentials import Regex
from twistlm.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("forks")
MARKUP = "[INST] hi [/INST] [red]:smile:"
TINY = ["--num-particles", "2", "--num-samples", "8", "--budget", "8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose prompt looks like rich's markup."""
    out = tmp_path_factory.mktemp("terminal") / "run[/b]"
    target = Target("stories", Regex("e", eps=0.1), MARKUP, 2, eos="ignore")
    train(target, num_updates=1, num_particles=8, out=out)
    return out


@contextmanager
def unread() -> Iterator[None]:
    """Standard output is a pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    standard, sys.stdout = sys.stdout, os.fdopen(writing, "w")
    try:
        yield
    finally:
        sys.stdout.close()
        sys.stdout = standard


@contextmanager
def encoded(encoding: str) -> Iterator[io.BytesIO]:
    """Standard output has an encoding without the symbols that are printed."""
    kept = io.BytesIO()
    standard, narrow = sys.stdout, io.TextIOWrapper(kept, encoding, write_through=True)
    sys.stdout = narrow
    try:
        yield kept
    finally:
        sys.stdout = standard
        narrow.detach()


@contextmanager
def at_a_terminal(encoding: str) -> Iterator[None]:
    """Standard output is a terminal, whatever standard error is."""
    there, here = os.openpty()
    standard, sys.stdout = sys.stdout, os.fdopen(here, "w", encoding=encoding)
    try:
        yield
    finally:
        sys.stdout.close()
        sys.stdout = standard
        os.close(there)


def commands(run: Path, out: Path) -> dict[str, tuple[list[str], Path]]:
    """Commands that print what they found, and the file that they leave."""
    event = ["probability", MARKUP, "--regex", "e", "--thresholds", "1", "--num-tokens", "2", "--num-draws", "64"]
    return {
        "certify": (["certify", str(run), *TINY, "--out", str(out / "c[/b].json")], out / "c[/b].json"),
        "probability": ([*event, "--max-rounds", "1", "--overwrite", "--out", str(out / "[red]p")],
                        out / "[red]p" / "probability.html"),
        "evaluate": (["evaluate", str(run), *TINY], run / "certificate.json"),
        "sample": (["sample", str(run), "--num-samples", "2"], run / "samples.jsonl"),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["certify", "probability", "evaluate", "sample"])
def test_results_outlive_their_reader_and_any_encoding(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, result = commands(run, tmp_path)[name]
    with unread():
        assert main(arguments) == 0
    assert result.stat().st_size > 0
    result.unlink()
    with encoded("ascii") as kept:
        assert main(arguments) == 0
    assert result.stat().st_size > 0
    assert kept.getvalue().isascii()
    assert not capsys.readouterr().err.count("Traceback")


def test_a_sweep_goes_on_when_nobody_reads_its_lines(tmp_path: Path) -> None:
    size = ["infilling", "--preset", "smoke", "--num-tokens", "2", "--num-condition", "1", "--num-updates", "1"]
    with unread():
        assert main(["sweep", *size, "--methods", "ctl", "--seeds", "1", "--out", str(tmp_path / "sweep")]) == 0
        assert main(["report", str(tmp_path / "sweep")]) == 0
    assert (tmp_path / "sweep" / "ctl" / "seed-0" / "certificate.json").exists()
    assert (tmp_path / "sweep" / "table.md").exists()


@pytest.mark.parametrize("name", ["certify", "probability", "evaluate", "sample"])
def test_text_is_text(name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, result = commands(run, tmp_path)[name]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    # In one piece, however long it is.
    if name != "sample" or run.name in str(result):
        assert str(result.parent if name == "probability" else result) in shown
    if name == "sample":
        assert f"text after {MARKUP!r}" in " ".join(shown.split())


def test_a_full_disk_behind_standard_output_is_one_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    command = Command(["list", "loss"], stdout=Path("/dev/full"))
    assert command.communicate()[1] == "error: [Errno 28] No space left on device\n"
    assert command.returncode == 1


def test_a_closed_pipe_ends_a_command_in_silence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    command = Command(["list"], stdout=tmp_path / "pipe")
    # Opening waits for the other end, which finds it closed when it writes.
    (tmp_path / "pipe").open().close()
    assert (command.wait(), command.communicate()[1]) == (0, "")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "r", "--nmu-samples", "3"], "Unrecognized options: --nmu-samples, 3;"),
        (["trian"], "Unrecognized options: trian;"),
        (["train", "toxicity"], "Missing from twistlm train: --out PATH Run folder. An existing one is refused"),
        (["train", "x", "--out", "x", "--num-updates", "many"], "Error parsing --num-updates: no type matching"),
    ],
)
def test_a_mistyped_command_is_one_plain_line_at_a_terminal_too(
    arguments: list[str], message: str, encoding: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("TERM", "xterm-256color")
    with at_a_terminal(encoding):
        assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}")
    assert said.endswith("; see twistlm --help\n")
    assert "For full helptext" not in said
    assert said.count("\n") == 1
    assert said.rstrip("\n").isprintable()


# --- Progress -------------------------------------------------------------------------------------------------


def test_a_log_file_gets_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with progress.bar("training (ctl)", 100) as report:
        for update in range(100):
            report(update + 1, "best at 3")
            now[0] += 1.0
    assert capsys.readouterr().err.splitlines() == [
        f"training (ctl): {k} of 100 after {k - 1} s, best at 3" for k in (31, 61, 91)
    ]
    monkeypatch.setenv("TWISTLM_PROGRESS", "0")
    with progress.bar("training (ctl)", 100) as report:
        now[0] += 60.0
        report(50, "")
    assert not capsys.readouterr().err


def test_loading_a_classifier_says_nothing() -> None:
    code = "from twistlm import Target, potentials as p; Target('stories', p.Classifier('toxicity', 'toxic'), 'a', 2)"
    done = subprocess.run([sys.executable, "-c", f"{code}.bound_potential"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# --- Signals --------------------------------------------------------------------------------------------------


def stop(command: "Command | subprocess.Popen[str]", number: signal.Signals) -> tuple[int, list[str]]:
    """Exit code and lines of standard error after the signal; Ctrl-C goes to all of its processes."""
    if number == signal.SIGINT:
        os.killpg(command.pid, number)
    else:
        command.send_signal(number)
    _, said = command.communicate(timeout=60)
    assert command.returncode is not None
    return command.returncode, [line for line in said.splitlines() if not line.startswith("WARNING")]


def stopped(
    arguments: list[str], number: signal.Signals, ready: Callable[[], bool], before: Callable[[], None] | None = None
) -> tuple[int, list[str]]:
    """The same of a command that is told to end once it is `ready`."""
    command = Command(arguments, session=True, before=before)
    command.wait_for(ready)
    return stop(command, number)


def updates(folder: Path) -> int:
    """How many lines of metrics a run has."""
    file = folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc to see when Python has begun")
@pytest.mark.parametrize("delay", [0.0, 0.1, 0.5, 1.5])
def test_ctrl_c_during_imports_is_one_line(delay: float) -> None:
    command = [sys.executable, "-m", "twistlm", "certify", "toxicity", "--preset", "smoke"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )

    def begun() -> bool:
        """Whether it has reached a line of ours: it catches SIGTERM from the first one on."""
        caught = Path(f"/proc/{process.pid}/status").read_text().partition("SigCgt:")[2].split()[0]
        return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)

    while not begun() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(delay)
    code, said = stop(process, signal.SIGINT)
    assert code == 130
    assert said == ["interrupted"]


@pytest.mark.parametrize("saved", [False, True])
def test_a_search_that_is_interrupted_speaks_of_resume_only_where_it_was_saved(saved: bool, tmp_path: Path) -> None:
    out, begun, plugin = tmp_path / "found", tmp_path / "begun", tmp_path / "begin.py"
    plugin.write_text(f"from pathlib import Path\nPath({str(begun)!r}).touch()\n")
    event = ["probability", "Once upon", "--regex", "zq", "--thresholds", "1", "--num-tokens", "2"]
    where = ["--out", str(out)] if saved else []
    search = [*event, "--num-draws", "64", "--max-rounds", "100000", *where, "--plugin", str(plugin)]
    code, said = stopped(
        search, signal.SIGINT, lambda: (out / "state" / "climb.safetensors" if saved else begun).exists()
    )
    assert code == 130
    assert said[-1] == ("interrupted; --resume continues what was saved" if saved else "interrupted")


def test_sigterm_leaves_a_run_that_can_be_continued(tmp_path: Path) -> None:
    out = tmp_path / "run"
    long = ["train", "toxicity", "--preset", "smoke", "--num-draws", "256", "--num-updates", "100000"]
    code, said = stopped([*long, "--out", str(out)], signal.SIGTERM, lambda: updates(out) >= 3)
    assert code == 143
    assert said == ["terminated; --resume continues what was saved"]
    # Of the last whole update, though the next checkpoint in time was seconds away. `tests/runs/test_kills.py` goes on.
    assert left_at(out) >= 1
    assert not [path.name for path in out.iterdir() if path.name.endswith(".tmp")]


def left_at(run: Path) -> int:
    """The updates that a run's checkpoint knows, which are all that it has made."""
    folder = RunFolder.open(run)
    saved = folder.load_checkpoint()
    assert saved is not None
    done, rows = saved[1]["progress"]["done"], saved[1]["rows"]
    lines = folder.metrics()
    assert [row["update"] for row in lines[:rows] if row["kind"] == "update"] == list(range(done))
    assert not [row for row in lines[rows:] if row["kind"] == "update"]
    return int(done)


@pytest.mark.parametrize("when", ["starting", "running"])
def test_ctrl_c_with_two_jobs_is_one_line(when: str, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    sweep = ["sweep", "infilling", "--preset", "smoke", "--num-tokens", "2", "--num-condition", "1", "--methods",
             "ctl,rl", "--seeds", "2", "--num-updates", "100000", "--jobs", "2", "--out", str(out)]  # fmt: skip

    def ready() -> bool:
        if when == "starting":
            return (out / "draws.safetensors").exists()
        return any(updates(out / method / "seed-0") >= 3 for method in ("ctl", "rl"))

    code, said = stopped(sweep, signal.SIGINT, ready)
    assert code == 130
    assert said == ["interrupted; the same command again continues it"]
    assert json.loads((out / "sweep.json").read_text())["seeds"] == 2
    if when == "running":
        # Its jobs left a checkpoint.
        assert any(left_at(run) >= 1 for run in out.glob("*/seed-0") if updates(run) >= 3)
