"""Engines with workers: several processes of this machine, or a Ray cluster.

Each worker is given its pieces by a thread of its own; `concurrent.futures` decides which thread has the next one. (Its
pool of processes does not do: before Python 3.14 it cannot be left while pieces are under way, and a process that is
ended in the middle of sending a result blocks it.)
"""

import inspect
import logging
import os
import pickle
import signal
import socket
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import connection, get_context, parent_process, resource_tracker
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from twistlm.core.errors import ConfigError, ProcessError, TwistError
from twistlm.core.plugins import files, load_file
from twistlm.core.registry import lookup, register
from twistlm.core.signals import STOPS, as_worker
from twistlm.core.sizes import RECORD_BYTES, check_sizes
from twistlm.core.work import Engine

C = TypeVar("C")
R = TypeVar("R")

# Pieces for each worker that may be ahead of the first whose result is still to come.
AHEAD = 4
# What every worker imports, most of it from transformers.
PRELOAD = ("twistlm.runs.train", "twistlm.models.huggingface")
# Attempts at a piece whose worker ends, on a cluster: machines come and go there.
ATTEMPTS = 3


def engine(name: str = "local", **options: Any) -> Engine:
    """An engine by name.

    Args:
        name: a registered one: "local" or "ray".
        **options: jobs, the number of workers; and for ray `options`, of its actors.

    Raises:
        ConfigError: there is no such engine, it takes no such option, or what it needs is not installed.
    """
    kind, given = lookup("engine", name).value, {key: value for key, value in options.items() if value is not None}
    known = inspect.signature(kind).parameters
    if unknown := [key for key in given if key not in known]:
        raise ConfigError(f"engine {name!r} takes no {', '.join(unknown)}; it takes {', '.join(known)}")
    made: Engine = kind(**given)
    return made


class _Worker(Protocol):
    """A process elsewhere, as its thread here sees it."""

    def do(self, piece: bytes) -> bytes:
        """What `_Context.do` returns there, or ProcessError if it has ended."""

    def stop(self) -> None:
        """Tell it to end, saving what is whole; `join` waits for that."""

    def join(self) -> None: ...

    def kill(self) -> None: ...


class _Started(Engine):
    """An engine with workers, which are started as there are pieces for them."""

    has_workers = True

    def __init__(self, start: Callable[[], _Worker], jobs: int, dumps: Callable[[Any], bytes]) -> None:
        self.jobs, self.dumps, self.workers, self.ending = jobs, dumps, list[_Worker](), False
        self._start, self._own, self._threads = start, threading.local(), ThreadPoolExecutor(jobs)

    @contextmanager
    def running(self) -> Iterator["_Started"]:
        """Workers end with the block; whoever cannot wait for what they save ends them at once."""
        try:
            yield self
        finally:
            self.ending = True
            try:
                for worker in self.workers:
                    worker.stop()
                self._threads.shutdown(cancel_futures=True)
                for worker in self.workers:
                    worker.join()
            except STOPS:
                for worker in self.workers:
                    worker.kill()
                raise

    def _do(self, piece: bytes) -> bytes:
        """In a thread: hand the piece to its worker."""
        if not hasattr(self._own, "worker"):
            self._own.worker = self._start()
            self.workers.append(self._own.worker)
            if self.ending:
                self._own.worker.stop()
        answer: bytes = self._own.worker.do(piece)
        return answer

    def do(self, pieces: Iterable[Callable[[C], R]], here: C) -> Generator[R, None, None]:
        ahead: deque[Future[bytes]] = deque()
        try:
            for piece in pieces:
                ahead.append(self._threads.submit(self._do, sent(piece, self.dumps)))
                if len(ahead) == AHEAD * self.jobs:
                    yield _result(ahead.popleft())
            while ahead:
                yield _result(ahead.popleft())
        finally:
            for future in ahead:
                future.cancel()


def _result(future: "Future[bytes]") -> Any:
    result, error = pickle.loads(future.result())
    if error is not None:
        raise error
    return result


def sent(value: Any, dumps: Callable[[Any], bytes]) -> bytes:
    """What other processes are sent.

    Raises:
        ConfigError: it cannot be.
    """
    try:
        return dumps(value)
    except (TypeError, AttributeError, ValueError, RuntimeError, pickle.PicklingError) as error:
        raise ConfigError(
            f"this cannot be sent to other processes ({' '.join(str(error).split())[:200]}): name models by folder, "
            "define functions in a module, or do with --jobs 1"
        ) from error


class _Context:
    """A worker's context, in its own process: made when the first piece comes."""

    def __init__(self, prepare: bytes, plugins: Sequence[Path], threads: int) -> None:
        logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
        # Bars of several processes would overwrite each other.
        os.environ["TWISTLM_PROGRESS"] = "0"
        torch.set_num_threads(threads)
        self.prepare, self.plugins, self.made = prepare, plugins, list[Any]()

    def do(self, piece: bytes) -> bytes:
        """The bytes of a piece's result and error, one of which is None."""
        try:
            if not self.made:
                for path in self.plugins:
                    load_file(path)
                self.made.append(pickle.loads(self.prepare)())
            return pickle.dumps((pickle.loads(piece)(self.made[0]), None))
        except TwistError as error:
            return pickle.dumps((None, error))
        except Exception as error:
            traceback.print_exc()
            sys.stderr.flush()
            said = " ".join(str(error).split())[:200]
            return pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {said} (its traceback is above)")))


def _lost(why: str) -> ProcessError:
    return ProcessError(
        f"a worker has ended in the middle of its work ({why}); the same command continues what was saved, with "
        "--resume if it takes that"
    )


# --- Processes of this machine ---


@register("engine", "local")
@dataclass(frozen=True)
class Local(Engine):
    """This machine: in this process, or in `jobs` of them with an equal share of the threads each.

    The processes end with this one, however that ends, so that nothing goes on writing unseen. They are forked, where
    the system can, from a server that has done the imports once (seconds each).

    Attributes:
        jobs: so many pieces at a time.

    Raises:
        ConfigError: the number of jobs is out of range.
    """

    jobs: int = 1

    def __post_init__(self) -> None:
        """Check the number."""
        check_sizes(RECORD_BYTES, jobs=self.jobs)

    @contextmanager
    def start(self, prepare: Callable[[], Any]) -> Iterator[Engine]:
        """As for `twistlm.core.work.Engine`."""
        if self.jobs == 1:
            yield self
            return
        given = sent(prepare, pickle.dumps), files(), max(1, torch.get_num_threads() // self.jobs)
        with _Started(lambda: _Process(*given), self.jobs, pickle.dumps).running() as started:
            yield started


class _Process:
    """A process, and the ends of what it is told and says."""

    def __init__(self, prepare: bytes, plugins: Sequence[Path], threads: int) -> None:
        context: Any = get_context("spawn" if sys.platform == "win32" else "forkserver")
        if sys.platform != "win32":
            # First, for its start lets through to what is started after it what we hold back (`_uninterrupted`).
            resource_tracker.ensure_running()
            context.set_forkserver_preload(list(PRELOAD))
        listens, self.told = context.Pipe(duplex=False)
        self.said, says = context.Pipe(duplex=False)
        self.process = context.Process(target=_serve, args=(prepare, plugins, threads, listens, says), daemon=True)
        with _uninterrupted():
            self.process.start()
        listens.close()
        says.close()

    def do(self, piece: bytes) -> bytes:
        try:
            self.told.send_bytes(piece)
            answer: bytes = self.said.recv_bytes()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            raise _lost(f"exit code {code}{', for want of memory? use fewer --jobs' if code == -9 else ''}") from None
        return answer

    def stop(self) -> None:
        self.process.terminate()

    def join(self) -> None:
        self.process.join()

    def kill(self) -> None:
        self.process.kill()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back from what is started here: it reaches every process of the terminal, and the parent decides."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(
    prepare: bytes, plugins: Sequence[Path], threads: int, listens: connection.Connection, says: connection.Connection
) -> None:
    """What a process does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with as_worker():
        context = _Context(prepare, plugins, threads)
        while True:
            try:
                piece = listens.recv_bytes()
            except EOFError:
                return
            says.send_bytes(context.do(piece))


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


# --- Machines of a cluster ---


@register("engine", "ray")
@dataclass(frozen=True)
class Ray(Engine):
    """A Ray cluster, whose address is in RAY_ADDRESS, or else a Ray that is started here: workers are its actors.

    The machines of a cluster need twistlm, the models and the folder of results at the same paths. Where there are
    GPUs, each worker has one. If a worker's process or machine is lost, Ray has its piece done by another one.

    Attributes:
        jobs: so many workers; by default as many as the cluster has GPUs, or else cores.
        options: of the actors, as `ray.remote` takes them: num_gpus, num_cpus (which is also the number of threads).

    Raises:
        ConfigError: Ray is not installed, or the number of jobs is out of range.
    """

    jobs: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what can be checked without a cluster."""
        if self.jobs is not None:
            check_sizes(RECORD_BYTES, jobs=self.jobs)
        _ray()

    @contextmanager
    def start(self, prepare: Callable[[], Any]) -> Iterator[Engine]:
        """As for `twistlm.core.work.Engine`.

        Raises:
            ConfigError: no cluster answers at the address.
        """
        ray = _ray()
        if not ray.is_initialized():
            _connect(ray, os.environ.get("RAY_ADDRESS") or "local")
        there = ray.cluster_resources()
        gpus = int(there.get("GPU", 0))
        how = {"num_gpus": 1 if gpus else 0, "scheduling_strategy": "SPREAD", **self.options}
        kind = ray.remote(_Context).options(**how, max_restarts=-1, max_task_retries=ATTEMPTS - 1)
        given = sent(prepare, ray.cloudpickle.dumps), files(), int(how.get("num_cpus", 1))
        jobs = self.jobs or gpus or int(there.get("CPU", 1))
        with _Started(lambda: _Actor(ray, kind.remote(*given)), jobs, ray.cloudpickle.dumps).running() as started:
            yield started


@dataclass(frozen=True)
class _Actor:
    ray: Any
    actor: Any

    def do(self, piece: bytes) -> bytes:
        try:
            answer: bytes = self.ray.get(self.actor.do.remote(piece))
        except self.ray.exceptions.RayError as error:
            raise _lost(" ".join(str(error).split())[:300]) from error
        return answer

    def stop(self) -> None:
        self.ray.kill(self.actor)

    def join(self) -> None:
        """Nothing to wait for."""

    kill = stop


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # What it will do some day, and says at every start until then.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError("engine 'ray' needs Ray: pip install 'twistlm[ray]', or choose --engine local") from error
    return ray


def _connect(ray: Any, address: str) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        host, _, port = address.rpartition(":")
        if host and port.isdigit() and "/" not in host:
            # Where nothing listens, Ray would wait many minutes.
            socket.create_connection((host, int(port)), timeout=10).close()
        where = {"include_dashboard": False} if address == "local" else {}
        ray.init(address, **where, logging_level=logging.ERROR, log_to_driver=True)
    except (OSError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        if address == "local":
            raise ConfigError(f"no Ray can be started on this machine ({said}): choose --engine local") from error
        raise ConfigError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({said}): start one with `ray start --head`, or unset it"
        ) from error
    finally:
        # Ray takes SIGTERM for itself; how a command ends is the command's own.
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
