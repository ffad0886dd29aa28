"""Whether modules can be imported, tried in another process: a broken one may end it, hang, or print."""

import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from types import TracebackType

# A module of a slow disk that has not been imported by then never will be.
SECONDS = 300.0
# Characters of an error that are shown.
SHOWN = 200


def failures(modules: Sequence[str], done: Callable[[int, str], None], seconds: float = SECONDS) -> dict[str, str]:
    """What is wrong with those modules that cannot be imported, by name.

    Args:
        modules: to be imported in this order, in one process as long as none ends it.
        done: is told how many are, and which is next.
        seconds: for each.
    """
    found: dict[str, str] = {}
    at = 0
    while at < len(modules):
        with _Child(modules[at:]) as child:
            while at < len(modules):
                done(at, modules[at])
                answer = child.answer(seconds)
                wrong = child.end(seconds) if answer is None else answer
                if wrong:
                    found[modules[at]] = wrong
                at += 1
                if answer is None:
                    break
    return found


class _Child:
    """A process that imports modules and answers after each."""

    def __init__(self, modules: Sequence[str]) -> None:
        paths = os.pathsep.join(path for path in sys.path if path)
        # Of the modules' own output nothing is wanted.
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *modules],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "_Child":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def answer(self, seconds: float) -> str | None:
        """What is wrong with the next module, "" if nothing is; None if there is no answer."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            return None
        return str(json.loads(line)) if line else None

    def end(self, seconds: float) -> str:
        """Why there was no answer."""
        if self._reader.is_alive():
            return f"has not been imported after {seconds:.0f} s"
        code = self._process.wait()
        return f"ends the process by {signal.Signals(-code).name}" if code < 0 else f"ends the process with code {code}"


def _main(modules: Sequence[str]) -> None:
    """What the other process does."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    for name in modules:
        wrong = ""
        try:
            importlib.import_module(name)
        except BaseException as error:  # whatever it raises is what is asked for
            wrong = " ".join(f"{type(error).__name__}: {error}".split())[:SHOWN]
        answers.write(f"{json.dumps(wrong)}\n")
        answers.flush()
    # Threads and finalisers of what was imported are nobody's business.
    os._exit(0)


if __name__ == "__main__":
    _main(sys.argv[1:])
