"""This machine: one task after the other in this process, or several at a time, each in a process of its own.

A process per task, not a pool: what a task took is given back when it ends, and one that is killed for want of memory
takes no other with it. The processes end with this one, however that ends, so that nothing goes on writing unseen.
They are forked, where the system can, from a server that has done the imports once (seconds each).
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import connection, get_context, parent_process, resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from twistlm.core.errors import TwistError
from twistlm.core.plugins import files, load_file
from twistlm.core.signals import STOPS, as_worker
from twistlm.runs.engines import Failure

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, ForkServerProcess, SpawnContext, SpawnProcess

T = TypeVar("T")


def run(
    function: Callable[[T], None], tasks: Sequence[T], jobs: int, preload: Sequence[str] = ()
) -> Generator[tuple[T, Failure | None], None, None]:
    """Do every task, `jobs` at a time; yields each as it ends.

    With one job everything happens in this process, and an error that is a bug comes through with its traceback. With
    more, each process gets an equal share of torch's threads. `preload` names modules that every task imports; the
    plugins that this process has loaded from files are there too.
    """
    if jobs == 1:
        for task in tasks:
            yield task, _attempt(function, task)
        return
    context = _context(preload)
    waiting, threads = list(reversed(tasks)), max(1, torch.get_num_threads() // jobs)
    function = partial(_with_plugins, files(), function)
    running: dict[Any, tuple[ForkServerProcess | SpawnProcess, connection.Connection, T]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task = waiting.pop()
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(function, task, threads, sender), daemon=True)
                with _uninterrupted():
                    process.start()
                sender.close()
                running[process.sentinel] = process, receiver, task
            for sentinel in connection.wait(list(running)):
                process, receiver, task = running.pop(sentinel)
                process.join()
                yield task, _outcome(receiver, process.exitcode)
    finally:
        _end([process for process, _, _ in running.values()])


def _end(processes: "Sequence[ForkServerProcess | SpawnProcess]") -> None:
    """Each saves what is whole first; whoever cannot wait for that ends them at once."""
    for process in processes:
        process.terminate()
    try:
        for process in processes:
            process.join()
    except STOPS:
        for process in processes:
            process.kill()
        raise


def _context(preload: Sequence[str]) -> "ForkServerContext | SpawnContext":
    if sys.platform == "win32":
        return get_context("spawn")
    # Not plain fork: this process may have threads by now, and the server never has.
    context = get_context("forkserver")
    # First, for its start lets through to what is started after it what we hold back (`_uninterrupted`).
    resource_tracker.ensure_running()
    context.set_forkserver_preload(list(preload))
    return context


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back from what is started here, and only for a moment from this process.

    It reaches every process of the terminal, and the parent decides. Processes inherit what is held back: the server
    too, which would otherwise be interrupted in the middle of its imports.
    """
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _with_plugins(plugins: Sequence[Path], function: Callable[[T], None], task: T) -> None:
    for path in plugins:
        load_file(path)
    function(task)


def _attempt(function: Callable[[T], None], task: T) -> Failure | None:
    try:
        function(task)
    except TwistError as error:
        return Failure(type(error).__name__, " ".join(str(error).split()))
    return None


def _work(function: Callable[[T], None], task: T, threads: int, sender: connection.Connection) -> None:
    """What a process does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with as_worker():
        logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
        # Bars of several processes would overwrite each other.
        os.environ["TWISTLM_PROGRESS"] = "0"
        torch.set_num_threads(threads)
        sender.send(_attempt(function, task))


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _outcome(receiver: connection.Connection, code: int | None) -> Failure | None:
    try:
        outcome: Failure | None = receiver.recv()
    except EOFError:
        return Failure(
            "Killed" if code is not None and code < 0 else "Bug",
            f"its process ended with exit code {code}: a negative one is a signal (−9 for want of memory: use fewer "
            "--jobs), otherwise its traceback is above",
        )
    return outcome
