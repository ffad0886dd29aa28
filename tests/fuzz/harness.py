"""What a command may not do, whatever it is asked: a workspace with things in it, and a look at it before and after."""

import hashlib
import io
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType

from twistlm import Target, train
from twistlm.cli import main
from twistlm.potentials import Regex

# Files of prompts: the first is one, the others are damaged.
PROMPT_FILES = {
    "prompts.txt": b"Once upon\nThe dog\n",
    "empty.txt": b"",
    "blank.txt": b"Once\n\nupon\n",
    "twice.txt": b"Once\nOnce\n",
    "latin.txt": b"caf\xe9\n",
    "long.txt": b"Once\n" + b"long " * 600 + b"\n",
    "cut.jsonl": b'{"prompt": "Once"}\n{"prompt": "up',
    "mixed.jsonl": b'"Once"\n[{"role": "user", "content": "Hi"}]\n',
    "deep.jsonl": b"[" * 50_000,
    "ragged.csv": b"prompt,weight\nOnce,1,2\n",
    "weights.csv": b"prompt,weight\nOnce,nan\nupon,-1\n",
}
# Of a case: whatever is refused is refused long before, and whatever is done is tiny.
SECONDS = 60


class TooSlowError(BaseException):
    """A case took longer than it may."""


@dataclass(frozen=True)
class Outcome:
    """What came of a case: its exit code (None if an error escaped), and what is wrong with it."""

    code: int | None
    problems: list[str]
    said: str
    seconds: float


def furnish(place: Path) -> None:
    """Things that a command may be pointed at, a finished run among them."""
    place.mkdir(parents=True)
    (place / "file").write_text("in the way\n")
    (place / "file.html").write_text("<p>kept\n")
    (place / "folder").mkdir()
    (place / "folder" / "kept.txt").write_text("years of work\n")
    (place / "empty").mkdir()
    (place / "dangling").symlink_to("nowhere")
    (place / "loop").symlink_to("loop")
    (place / "link").symlink_to("folder")
    for name, content in PROMPT_FILES.items():
        (place / name).write_bytes(content)
    target = Target("stories", Regex("e", eps=0.1), "Once upon", 2, eos="ignore")
    run = train(target, num_updates=1, num_particles=8, out=place / "run")
    assert run.folder is not None
    shutil.copy(run.folder.draws, place / "draws.safetensors")
    small = ("infilling", "--preset", "smoke", "--num-tokens", "2", "--num-condition", "1", "--num-updates", "1")
    with redirect_stdout(io.StringIO()):
        main(["sweep", *small, "--methods", "ctl", "--seeds", "1", "--out", str(place / "sweep")])
        main(["evaluate", str(place / "run"), "--num-particles", "2", "--num-samples", "8", "--budget", "8"])


class Workspace:
    """A copy of what was furnished, in which one case after the other is tried."""

    def __init__(self, template: Path, place: Path) -> None:
        self.template, self.place = template, place
        self._renew()

    def _renew(self) -> None:
        # One folder further in than the outermost, so that ".." can be watched too.
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        shutil.copytree(self.template, self.place / "here", symlinks=True)
        self.before = contents(self.place)

    def attempt(self, arguments: Sequence[str], hopeless: bool) -> Outcome:
        """Run a command here and see what it did."""
        out, err, problems = io.StringIO(), io.StringIO(), []
        code: int | None = None
        since = time.perf_counter()
        with chdir(self.place / "here"), limit(SECONDS), redirect_stdout(out), redirect_stderr(err):
            try:
                code = main(list(arguments))
            except SystemExit as stopped:
                code = stopped.code if isinstance(stopped.code, int) else 1
            except TooSlowError:
                problems.append(f"still going after {SECONDS} s")
            except BaseException:
                problems.append(f"an error escaped: {traceback.format_exc(limit=-3)}")
        problems += _wrong_words(code, err.getvalue()) if code is not None else []
        if code == 0 and hopeless:
            problems.append("it has a value that nothing takes, and was done")
        after = contents(self.place)
        if after != self.before:
            changed = sorted(name for name in {*self.before, *after} if self.before.get(name) != after.get(name))
            lost = [name for name in changed if name in self.before]
            if code != 0:
                problems.append(f"refused, and yet these are not as they were: {', '.join(changed)}")
            elif any(not name.startswith(("here/run", "here/sweep")) for name in lost):
                problems.append(f"done, and these are not as they were: {', '.join(lost)}")
            problems += [f"left behind: {name}" for name in changed if name.endswith((".tmp", ".lock"))]
            self._renew()
        return Outcome(code, problems, err.getvalue(), time.perf_counter() - since)


def contents(place: Path) -> dict[str, str]:
    """Every file by name with a hash of its bytes; folders and links too."""
    found = {}
    for folder, folders, files in os.walk(place):
        for name in (*folders, *files):
            path = Path(folder) / name
            if path.is_symlink():
                what = f"link to {path.readlink()}"
            elif path.is_dir():
                what = "folder"
            else:
                status = path.stat()
                what = _hash(path, status.st_ino, status.st_ctime_ns)
            found[str(path.relative_to(place))] = what
    return found


@cache
def _hash(path: Path, inode: int, changed: int) -> str:
    """Of a file that nothing has written to since; reading all of a folder twice would take as long as the command."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _wrong_words(code: int, said: str) -> list[str]:
    problems = []
    if "Traceback" in said:
        problems.append("a traceback was printed")
    if code not in (0, 1, 2):
        problems.append(f"exit code {code}")
    # Warnings, prices and progress are said on the way.
    lines = [line for line in said.splitlines() if not line.startswith(("WARNING: ", "price: ", "round "))]
    if code and (len(lines) != 1 or not lines[0].startswith("error: ") or len(lines[0]) < len("error: ") + 8):
        problems.append(f"{len(lines)} lines in place of one error")
    if code == 0 and lines:
        problems.append("done, with words on standard error")
    return problems


@contextmanager
def limit(seconds: int) -> Iterator[None]:
    """End what takes longer by an error that no command catches: a TimeoutError would be one of the system's."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def offline() -> None:
    """No name is looked for on the hub: the cases are full of them."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    if "huggingface_hub" in sys.modules:
        import huggingface_hub.constants

        huggingface_hub.constants.HF_HUB_OFFLINE = True
