"""Processes that begin with everything imported, so that their seconds are spent on what is tested.

They are forks of a server that does nothing but import: a fork of pytest's own process would lack its threads. Tests
that start some use the fixture `forks`, which pays for the imports once.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.conftest", "tests.preloaded"])


def start(function: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """A process, already running, that calls the function and ends; it is a module's, and the arguments pickle."""
    process = CONTEXT.Process(target=function, args=arguments)
    process.start()
    return process


class Command:
    """The command line in a process of its own, already running, in the manner of `subprocess.Popen`.

    Args:
        arguments: what follows `twistlm`.
        environment: variables that differ from this process's.
        path: folders that come first where modules are looked for.
        session: whether it has a session of its own, so that a signal may go to all of its processes.
        before: called first; a module's function without arguments.
        stdout, stderr: where they go; by default what `communicate` gives.
        cwd: the current folder; this process's own by default.
        script: a file to run in place of the command line.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        path: Sequence[str | Path] = (),
        session: bool = False,
        before: Callable[[], None] | None = None,
        stdout: Path | None = None,
        stderr: Path | None = None,
        cwd: Path | None = None,
        script: Path | None = None,
    ) -> None:
        self.arguments = [*map(str, arguments)]
        self._place = tempfile.TemporaryDirectory()
        self._files = [stdout or Path(self._place.name, "stdout"), stderr or Path(self._place.name, "stderr")]
        # The server has the environment that it was started with.
        variables = {**os.environ, "TWISTLM_PROGRESS": "0", **(environment or {})}
        self.process = start(
            _command,
            self.arguments,
            variables,
            [*map(str, path)],
            [*map(str, self._files)],
            session,
            before,
            cwd or Path.cwd(),
            script,
        )
        self.pid = int(self.process.pid or 0)

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        """Nothing where it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = 300) -> int:
        """The exit code.

        Raises:
            TimeoutError: it is still running.
        """
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.kill()
            raise TimeoutError(f"twistlm {' '.join(self.arguments)} has not ended after {timeout:g} s")
        return self.process.exitcode

    def wait_for(self, condition: Callable[[], bool], timeout: float = 60) -> None:
        """Until the condition holds or it has ended."""
        end = time.monotonic() + timeout
        while not condition() and self.poll() is None and time.monotonic() < end:
            time.sleep(0.005)

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """What it has written, once it has ended."""
        self.wait(timeout)
        said = [file.read_text() if file.is_file() else "" for file in self._files]
        return said[0], said[1]


def twistlm(*arguments: str | Path, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run the command line in a process of its own, to its end; options are those of `Command`."""
    command = Command([*map(str, arguments)], **options)
    stdout, stderr = command.communicate()
    return subprocess.CompletedProcess(command.arguments, command.wait(), stdout, stderr)


def nothing() -> None:
    """What the first process does, by which the server is known to have imported all."""


def _command(
    arguments: list[str],
    variables: dict[str, str],
    path: list[str],
    files: list[str],
    session: bool,
    before: Callable[[], None] | None,
    cwd: Path,
    script: Path | None,
) -> None:
    if session:
        os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    for descriptor, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    # The server's own know what they were opened on: a pipe cannot be sought in.
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
    sys.path[:0] = path
    sys.argv = [str(script or "twistlm"), *arguments]
    if before is not None:
        before()
    if script is not None:
        sys.path.insert(0, str(script.parent))
        runpy.run_path(str(script), run_name="__main__")
        return
    from twistlm.__main__ import main

    sys.exit(main())
