"""This machine: one piece after the other in this process, or several at a time, each in a process of its own.

The processes end with this one, however that ends, so that nothing goes on writing unseen. They are forked, where the
system can, from a server that has done the imports once (seconds each).
"""

import logging
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process, resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from twistlm.core.plugins import files
from twistlm.core.registry import register
from twistlm.core.signals import STOPS, as_worker
from twistlm.core.sizes import RECORD_BYTES, check_sizes
from twistlm.core.work import InThisProcess, Team
from twistlm.runs.engines import Share
from twistlm.runs.engines.schedule import Lost, Scheduled, Worker, sent

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, ForkServerProcess, SpawnContext, SpawnProcess

# What every worker imports, most of it from transformers.
PRELOAD = ("twistlm.runs.train", "twistlm.models.huggingface")


@register("engine", "local")
@dataclass(frozen=True)
class Local:
    """This machine: in this process, or in `jobs` of them with an equal share of the threads each.

    Attributes:
        jobs: so many pieces at a time.
        share: torch's threads of each process; by default as many as there are for all, divided by `jobs`.
        once: a process for every piece, which gives back what the piece took.

    Raises:
        ConfigError: the number of jobs is out of range.
    """

    jobs: int = 1
    share: Share | None = None
    once: bool = False

    def __post_init__(self) -> None:
        """Check the number."""
        check_sizes(RECORD_BYTES, jobs=self.jobs)

    @contextmanager
    def open(self, prepare: Callable[[], Any], here: Any = None) -> Iterator[Team[Any]]:
        """As for `twistlm.core.work.Engine`."""
        if self.jobs == 1:
            with InThisProcess().open(prepare, here) as alone:
                yield alone
            return
        threads = max(1, torch.get_num_threads() // self.jobs) if self.share is None else self.share.cpus
        team = Scheduled(_Processes(sent(prepare, pickle.dumps), threads), self.jobs, once=self.once)
        try:
            yield team
        finally:
            team.close()


@dataclass(eq=False)
class _Process:
    """A worker and both ends of what it is told and says."""

    process: "ForkServerProcess | SpawnProcess"
    told: connection.Connection
    said: connection.Connection


class _Processes:
    """How processes of this machine are dealt with."""

    def __init__(self, prepare: bytes, threads: int) -> None:
        self.prepare, self.threads, self.context = prepare, threads, _context()

    def start(self) -> _Process:
        listens, told = self.context.Pipe(duplex=False)
        said, says = self.context.Pipe(duplex=False)
        process = self.context.Process(
            target=_work, args=(self.prepare, files(), self.threads, listens, says), daemon=True
        )
        with _uninterrupted():
            process.start()
        listens.close()
        says.close()
        return _Process(process, told, said)

    def give(self, worker: _Process, piece: bytes) -> None:
        try:
            worker.told.send_bytes(piece)
        except OSError:
            # It is gone; waiting for it finds out.
            return

    def wait(self, busy: Sequence[_Process]) -> Sequence[tuple[_Process, bytes | Lost]]:
        by_end = {worker.said: worker for worker in busy}
        found: list[tuple[_Process, bytes | Lost]] = []
        for end in connection.wait(list(by_end)):
            worker = by_end[end]  # type: ignore[index]
            try:
                found.append((worker, worker.said.recv_bytes()))
            except (EOFError, OSError):
                worker.process.join()
                code = worker.process.exitcode
                found.append((worker, Lost(f"its process ended with exit code {code}{_signal(code)}")))
        return found

    def stop(self, workers: Sequence[_Process]) -> None:
        """Each saves what is whole first; whoever cannot wait for that ends them at once."""
        for worker in workers:
            worker.process.terminate()
        try:
            for worker in workers:
                worker.process.join()
        except STOPS:
            for worker in workers:
                worker.process.kill()
            raise
        finally:
            for worker in workers:
                worker.told.close()
                worker.said.close()


def _signal(code: int | None) -> str:
    return " (−9: for want of memory? use fewer --jobs)" if code == -9 else ""


def _context() -> "ForkServerContext | SpawnContext":
    if sys.platform == "win32":
        return get_context("spawn")
    # Not plain fork: this process may have threads by now, and the server never has.
    context = get_context("forkserver")
    # First, for its start lets through to what is started after it what we hold back (`_uninterrupted`).
    resource_tracker.ensure_running()
    context.set_forkserver_preload(list(PRELOAD))
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


def _work(
    prepare: bytes, plugins: Sequence[Path], threads: int, listens: connection.Connection, says: connection.Connection
) -> None:
    """What a process does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with as_worker():
        logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
        # Bars of several processes would overwrite each other.
        os.environ["TWISTLM_PROGRESS"] = "0"
        torch.set_num_threads(threads)
        worker = Worker(prepare, plugins)
        while True:
            try:
                piece = listens.recv_bytes()
            except EOFError:
                return
            says.send_bytes(worker.do(piece))


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
