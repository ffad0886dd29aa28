"""Nothing is lost and nobody writes where another does: whatever goes wrong, what was there is there, byte for byte."""

import json
import os
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.forked import Command, twistlm
from twistlm.cli import main
from twistlm.core.errors import LeaseLostError, RunError, StorageError
from twistlm.core.folders import check_room, writing, writing_file
from twistlm.core.storage import load_lines, save_lines
from twistlm.runs.config import RunConfig
from twistlm.runs.folder import AskedRun, RunFolder

pytestmark = pytest.mark.usefixtures("forks")

TRAIN = ["train", "sentiment", "--preset", "smoke", "--num-tokens", "3", "--num-updates", "2"]
SWEEP = ["sweep", "sentiment", "--preset", "smoke", "--num-tokens", "3", "--num-updates", "1", "--methods", "ctl",
         "--seeds", "1"]  # fmt: skip
COLLECT = ["collect", "sentiment", "--preset", "smoke", "--num-tokens", "3", "--max-draws", "512"]


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder; folders themselves are None."""
    return {str(p.relative_to(folder)): None if p.is_dir() else p.read_bytes() for p in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a sweep, a file of draws, each made by its command."""
    place = tmp_path_factory.mktemp("made")
    assert main([*TRAIN, "--out", str(place / "run")]) == 0
    assert main([*SWEEP, "--out", str(place / "sweep")]) == 0
    assert main([*COLLECT, "--out", str(place / "draws")]) == 0
    (place / "foreign").write_bytes((place / "run" / "twist.safetensors").read_bytes())
    return place


WRONG_TARGET = [
    ("no such experiment", {1: "sentimental"}, []),
    ("no such preset", {}, ["--preset", "huge"]),
    ("a label that is not there", {}, ["--label", "9 stars"]),
    ("beyond the context", {}, ["--num-tokens", "100000"]),
    ("no tokens", {}, ["--num-tokens", "-1"]),
    ("an option of another experiment", {}, ["--num-condition", "3"]),
    ("no number", {}, ["--beta", "nan"]),
]
WRONG_RUN = [
    ("no such method", {}, ["--method", "pppo"]),
    ("no such twist", {}, ["--twist", "lstm"]),
    ("no such source", {}, ["--source", "web"]),
    ("draws that are not there", {}, ["--draws", "nowhere.safetensors"]),
    ("draws that are a folder", {}, ["--draws", "run"]),
    ("draws that are a twist", {}, ["--draws", "foreign"]),
    ("draws of another target", {}, ["--draws", "draws", "--label", "2 stars"]),
    ("its own draws for another target", {}, ["--draws", "run/draws.safetensors", "--num-tokens", "4"]),
    ("an infinite learning rate", {}, ["--learning-rate", "inf"]),
    ("a huge learning rate", {}, ["--learning-rate", "1e38"]),
    ("no learning rate", {}, ["--learning-rate", "nan"]),
    ("a negative learning rate", {}, ["--learning-rate", "-1"]),
    ("negative decay", {}, ["--weight-decay", "-1"]),
    ("no particles", {}, ["--num-particles", "0"]),
    ("no updates", {}, ["--num-updates", "0"]),
    ("negative draws", {}, ["--num-draws", "-5"]),
    ("too few draws", {}, ["--num-draws", "3"]),
    ("draws without end", {}, ["--num-draws", "1000000000000000"]),
    ("two policies", {}, ["--resume"]),
]
WRONG_SWEEP = [
    ("no such method", {}, ["--methods", "ctl,pppo"]),
    ("no method", {}, ["--methods", ","]),
    ("no seeds", {}, ["--seeds", "0"]),
    ("no jobs", {}, ["--jobs", "0"]),
    ("no such source", {}, ["--source", "web"]),
    ("an infinite learning rate", {}, ["--learning-rate", "-inf"]),
    ("no updates", {}, ["--num-updates", "0"]),
]
WRONG_COLLECT = [
    ("no draws", {}, ["--max-draws", "0"]),
    ("two policies", {}, ["--resume"]),
    ("the name of a folder", {}, ["--out", "run"]),
]
DEMO = ["demo"]
WRONG_DEMO = [("no such preset", {}, ["--preset", "huge"]), ("two policies", {}, ["--resume"])]
TABLE = [
    (command, out, name, changed, more)
    for command, out, cases in (
        (TRAIN, "run", WRONG_TARGET + WRONG_RUN),
        (SWEEP, "sweep", WRONG_TARGET + WRONG_SWEEP),
        (COLLECT, "draws", WRONG_TARGET + WRONG_COLLECT),
        (DEMO, "run", WRONG_DEMO),
    )
    for name, changed, more in cases
]


@pytest.mark.parametrize(
    ("command", "out", "changed", "more"),
    [(command, out, changed, more) for command, out, _, changed, more in TABLE],
    ids=[f"{command[0]}: {name}" for command, _, name, _, _ in TABLE],
)
def test_overwriting_that_fails_leaves_everything(
    command: list[str], out: str, changed: dict[int, str], more: list[str], made: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(made)
    monkeypatch.setenv("TWISTLM_PROGRESS", "0")
    before = contents(made)
    arguments = [changed.get(at, word) for at, word in enumerate(command)] + ["--out", out, "--overwrite", *more]
    try:
        code = main(arguments)
    except SystemExit as refused:
        code = int(refused.code or 0)
    assert code in (1, 2), capfd.readouterr().out
    assert "Traceback" not in capfd.readouterr().err
    assert contents(made) == before


def test_a_run_is_overwritten_with_its_own_draws(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    draws, before = (run / "draws.safetensors").read_bytes(), (run / "twist.safetensors").read_bytes()
    monkeypatch.chdir(tmp_path)
    arguments = [*TRAIN, "--draws", "run/draws.safetensors", "--seed", "5", "--out", "run", "--overwrite"]
    assert main(arguments) == 0
    assert (run / "draws.safetensors").read_bytes() == draws
    assert (run / "twist.safetensors").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(("command", "out"), [(SWEEP, "sweep"), (COLLECT, "draws")])
def test_what_goes_well_takes_its_place(command: list[str], out: str, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "made")
    place = tmp_path / "made" / out
    more = ["--num-updates", "2"] if out == "sweep" else ["--seed", "7"]
    before = contents(tmp_path / "made")
    assert main([*command, *more, "--out", str(place), "--overwrite"]) == 0
    after = contents(tmp_path / "made")
    assert after.keys() == before.keys()
    changed = {name for name in after if after[name] != before[name]}
    assert {name.split("/")[0] for name in changed} == {out}


def test_a_folder_that_has_taken_its_place_is_held_for_as_long_as_it_is_written(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "old").touch()
    with writing(place, replace=True) as draft:
        (draft.path / "new").touch()
        draft.take_place()
        save_lines(place / "more", [])
        draft.lock.check()
        with pytest.raises(RunError, match="is being written by"), writing(place):
            pass
    assert sorted(path.name for path in place.iterdir()) == ["more", "new"]
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


@pytest.mark.parametrize("hold", [writing, writing_file])
def test_who_has_lost_the_lock_writes_nothing_more(hold: Any, tmp_path: Path) -> None:
    place, lock = tmp_path / "place", tmp_path / ".place.lock"
    file = place / "lines" if hold is writing else place
    with pytest.raises(LeaseLostError, match="taken over by somebody else"), hold(place):  # noqa: PT012
        lines = lock.read_text().splitlines()
        lock.unlink()
        lock.write_text("\n".join("token=0" if line.startswith("token=") else line for line in lines) + "\n")
        file.write_text("the other's")
        save_lines(file, [])
    assert file.read_text() == "the other's"
    assert lock.exists()


def test_the_lock_of_a_machine_that_is_gone_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("twistlm.core.folders.LEASE_SECONDS", 1.0)
    with writing(tmp_path / "other"):
        lines = (tmp_path / ".other.lock").read_text().splitlines()
    lock = tmp_path / ".place.lock"
    lock.write_text("\n".join("host=far.away" if line.startswith("host=") else line for line in lines) + "\n")
    with pytest.raises(RunError, match=r"is being written by process .* on far\.away"), writing(tmp_path / "place"):
        pass
    os.utime(lock, (1.0, 1.0))
    with writing(tmp_path / "place"):
        pass
    assert "TW501" in caplog.text


@pytest.mark.parametrize("command", [TRAIN, SWEEP, COLLECT])
def test_what_is_refused_leaves_no_folder_in_the_way(command: list[str], tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    assert main([*command, "--label", "9 stars", "--out", str(out)]) == 2
    assert not list(tmp_path.iterdir())
    assert main([*command, "--out", str(out)]) == 0


# --- Killed in between ---


def started(arguments: list[str], until: Callable[[], bool]) -> Command:
    """A command in a process of its own, when it has come so far."""
    command = Command(arguments)
    command.wait_for(until, timeout=120)
    assert command.poll() is None, command.communicate()
    return command


LONG = [*TRAIN[:-1], "100000", "--method", "ctl"]


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


@contextmanager
def training(run: Path, *more: str, at: Path | None = None) -> Iterator[Command]:
    """A long training into `run`, from its third update on; killed at the end."""
    process = started([*LONG, "--out", str(run), *more], lambda: lines((at or run) / "metrics.jsonl") > 3)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_killed_while_overwriting(made: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    before, beside = contents(run), tmp_path / ".run.new"
    with training(run, "--overwrite", at=beside) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert contents(run) == before
        assert beside.exists()
    # The next one finds no one there any more, and cleans up.
    assert main([*TRAIN, "--seed", "3", "--out", str(run), "--overwrite"]) == 0
    assert contents(run).keys() == before.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_one_writer(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    with training(run) as process:
        for more in (["--overwrite"], ["--resume"]):
            assert main([*LONG, "--out", str(run), *more]) == 2
            printed = capsys.readouterr().err
            assert f"{run} is being written by process {process.pid} on " in printed
            assert printed.count("\n") == 1
        # Whoever looks is not in the way, nor kept from looking.
        assert main(["report", str(run)]) == 2
        assert "has not finished" in capsys.readouterr().err
        process.send_signal(signal.SIGKILL)
        process.wait()
        (run / ".checkpoint.safetensors.123.tmp").write_text("half")
        shutil.copytree(made / "run", tmp_path / "finished")
        assert main(["sample", str(tmp_path / "finished"), "--num-samples", "1"]) == 0
    # A lock ends with its owner.
    config = (run / "config.json").read_text()
    assert main([*TRAIN, "--seed", "4", "--out", str(run), "--resume"]) == 2
    different = "run.training.num_updates 100000, now 2; run.seed 0, now 4"
    assert f"holds a run with another run ({different}); resume with the settings" in capsys.readouterr().err
    assert (run / "config.json").read_text() == config
    assert not list(tmp_path.glob(".*.lock"))
    process = started([*LONG, "--out", str(run), "--resume"], lambda: not list(run.glob(".*.123.tmp")))
    process.kill()
    process.communicate()


def test_one_sweep_and_one_collection(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, command in ((tmp_path / "sweep", SWEEP), (tmp_path / "draws", COLLECT)):
        hold = writing if command is SWEEP else writing_file
        with hold(path):
            found = twistlm(*command, "--out", path)
            assert found.returncode == 2
            assert f"is being written by process {os.getpid()}" in found.stderr
            with pytest.raises(RunError, match="is being written by"), hold(path):
                pass
        assert not list(tmp_path.iterdir())


def test_a_folder_that_is_deleted_meanwhile_is_an_error(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with training(run) as process:
        shutil.rmtree(run)
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 1
        assert f"{run} was deleted or replaced" in errors
        assert "saved" not in out
        assert "Traceback" not in errors
    assert not run.exists()


def test_a_file_that_is_deleted_meanwhile_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    arguments = [*TRAIN[:-1], "40", "--method", "ctl", "--out", str(run)]
    process = started(arguments, lambda: lines(run / "metrics.jsonl") > 3)
    (run / "config.json").unlink()
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"{run} lacks config.json" in errors
    assert "saved" not in out


# --- Files ---


def test_all_files_have_the_permissions_of_a_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        assert main([*TRAIN, "--out", str(tmp_path / "run")]) == 0
        assert main(["sample", str(tmp_path / "run"), "--num-samples", "2"]) == 0
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "run").iterdir() if path.is_file()}
    assert set(modes.values()) == {0o640}, modes


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "old").touch()
    (tmp_path / "link").symlink_to("real")
    with writing(tmp_path / "link", replace=True) as draft:
        (draft.path / "new").touch()
        assert [path.name for path in (tmp_path / "link").iterdir() if path.name[0] != "."] == ["old"]
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["new"]


def test_an_empty_folder_that_was_there_is_there_afterwards(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with writing(place):
        pass
    assert place.is_dir()
    with pytest.raises(ZeroDivisionError), writing(place) as draft:  # noqa: PT012
        (draft.path / "config.json").touch()
        raise ZeroDivisionError
    assert place.is_dir()


def test_a_new_folder_that_cannot_take_its_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, rename = tmp_path / "place", Path.rename
    place.mkdir()
    (place / "old").touch()

    def refusing(self: Path, target: Path) -> Path:
        if self.name == ".place.new":
            raise PermissionError(13, "not today")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refusing)
    with pytest.raises(StorageError, match="not today"), writing(place, replace=True) as draft:
        (draft.path / "new").touch()
    assert [path.name for path in place.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_a_lock_is_missed_by_way_of_a_link_too(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(LeaseLostError), writing(tmp_path / "link") as draft:  # noqa: PT012
        (tmp_path / ".real.lock").unlink()
        save_lines(draft.path / "lines", [])
    assert not (tmp_path / "real" / "lines").exists()


def test_a_kill_between_the_two_renames_is_repaired(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "old").touch()
    place.rename(tmp_path / ".place.old")
    with writing(place):
        assert (place / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_the_same_goes_on_with_what_a_kill_left(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for seed in (0, 1, 1, 2):
        asked = AskedRun(None, RunConfig(seed=seed))
        with suppress(KeyboardInterrupt), RunFolder.writing(run, asked, "overwrite") as folder:
            done = [path.name for path in folder.path.iterdir() if path.name == "samples.jsonl"]
            assert done == (["samples.jsonl"] if seed == 1 and (tmp_path / "killed").exists() else [])
            (folder.path / "samples.jsonl").touch()
            if seed == 0:
                for name in ("metrics.jsonl", "checkpoint.safetensors", "twist.safetensors"):
                    (folder.path / name).touch()
            else:
                (tmp_path / "killed").touch()
                raise KeyboardInterrupt
        assert json.loads((run / "config.json").read_text())["run"]["seed"] == 0


def test_lines_end_where_they_end(tmp_path: Path) -> None:
    rows = [{"text": "one\u2028line\x85still\x0bthe same\x1e"}, {"text": ""}]
    save_lines(tmp_path / "lines", rows)
    assert [json.loads(line) for line in load_lines(tmp_path / "lines")] == rows
    save_lines(tmp_path / "lines", [])
    assert load_lines(tmp_path / "lines") == []


def test_no_room_is_said_before_anything_is_begun(tmp_path: Path) -> None:
    check_room(tmp_path / "run" / "deep", 1.0)
    with pytest.raises(StorageError, match="make room"):
        check_room(tmp_path / "run" / "deep", 1e30)
