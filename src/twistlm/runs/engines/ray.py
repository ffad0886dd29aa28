"""Many machines, by Ray: workers are actors that keep what they have loaded.

With no address a Ray of its own is started on this machine, and ends with this process. The machines of a cluster need
twistlm, the models and the folder of results at the same paths.
"""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twistlm.core.errors import ConfigError
from twistlm.core.plugins import files
from twistlm.core.registry import register
from twistlm.core.sizes import RECORD_BYTES, check_sizes
from twistlm.core.work import Team
from twistlm.runs.engines import Share
from twistlm.runs.engines.schedule import Lost, Scheduled, Worker, sent

logger = logging.getLogger("twistlm")

GiB = 2**30
# Seconds without news after which workers that have nothing to do make room for some that may wait for a place.
PATIENCE = 20.0


@register("engine", "ray")
@dataclass(frozen=True)
class Ray:
    """A Ray cluster, or one that is started on this machine: workers with cores, GPUs and memory of their own.

    Attributes:
        jobs: so many workers; by default as many as the cluster has room for.
        share: what each of them takes.
        address: of the cluster, as HOST:PORT, or "auto" for one that runs on this machine; None starts one here.
        once: ignored: a worker is kept, for it takes seconds to start.

    Raises:
        ConfigError: Ray is not installed, or the number of jobs is out of range.
    """

    jobs: int | None = None
    share: Share = field(default_factory=Share)
    address: str | None = None
    once: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without a cluster."""
        if self.jobs is not None:
            check_sizes(RECORD_BYTES, jobs=self.jobs)
        _ray()

    @contextmanager
    def open(self, prepare: Callable[[], Any], here: Any = None) -> Iterator[Team[Any]]:
        """As for `twistlm.core.work.Engine`.

        Raises:
            ConfigError: no cluster answers at the address, or no machine of it has room for a worker.
        """
        ray = _ray()
        if not ray.is_initialized():
            _connect(ray, self.address, self.jobs, self.share)
        room = _room(ray, self.share)
        team = Scheduled(
            _Actors(ray, sent(prepare, ray.cloudpickle.dumps), self.share), self.jobs or room, ray.cloudpickle.dumps
        )
        try:
            yield team
        finally:
            team.close()


class _Actors:
    """How actors are dealt with."""

    def __init__(self, ray: Any, prepare: bytes, share: Share) -> None:
        self.ray = ray
        self.kind = ray.remote(_Actor).options(**_asked(share), max_restarts=0, scheduling_strategy="SPREAD")
        # Once for every machine, however many workers it has.
        self.prepare, self.threads = ray.put(prepare), share.cpus
        self.pending: dict[Any, Any] = {}

    def start(self) -> Any:
        return self.kind.remote(self.prepare, files(), self.threads)

    def give(self, worker: Any, piece: bytes) -> None:
        self.pending[worker] = worker.do.remote(piece)

    def wait(self, busy: Sequence[Any]) -> Sequence[tuple[Any, bytes | Lost]]:
        by_result = {self.pending[worker]: worker for worker in busy}
        ready, _ = self.ray.wait(list(by_result), num_returns=1, timeout=PATIENCE)
        found: list[tuple[Any, bytes | Lost]] = []
        for result in ready:
            worker = by_result[result]
            del self.pending[worker]
            try:
                found.append((worker, self.ray.get(result)))
            except self.ray.exceptions.RayError as error:
                why = " ".join(str(error).split())
                found.append((worker, Lost(f"its worker ended ({why[:300]})")))
        return found

    def stop(self, workers: Sequence[Any]) -> None:
        for worker in workers:
            self.pending.pop(worker, None)
            self.ray.kill(worker)


class _Actor:
    """A worker in a process of the cluster."""

    def __init__(self, prepare: bytes, plugins: Sequence[Path], threads: int) -> None:
        import torch

        logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
        os.environ["TWISTLM_PROGRESS"] = "0"
        torch.set_num_threads(threads)
        self.worker = Worker(prepare, plugins)

    def do(self, piece: bytes) -> bytes:
        return self.worker.do(piece)


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # What it will do some day, and says at every start until then.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError("engine 'ray' needs Ray: pip install 'twistlm[ray]', or choose --engine local") from error
    return ray


def _connect(ray: Any, address: str | None, jobs: int | None, share: Share) -> None:
    # Without an address Ray would join whatever cluster somebody has started on this machine.
    how: dict[str, Any] = {"address": "local", "include_dashboard": False} if address is None else {"address": address}
    if address is None and jobs is not None:
        # On this machine there is room for what was asked for, as with --engine local.
        how["num_cpus"] = max(os.cpu_count() or 1, jobs * share.cpus)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        _answers(address)
        ray.init(**how, logging_level=logging.ERROR, log_to_driver=True)
    except (OSError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        if address is None:
            raise ConfigError(f"no Ray can be started on this machine ({said}): choose --engine local") from error
        raise ConfigError(
            f"no Ray cluster answers at {address!r} ({said}): start one with `ray start --head`, or leave --address out"
        ) from error
    finally:
        # Ray takes SIGTERM for itself; how a command ends is the command's own.
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _answers(address: str | None) -> None:
    """Try whether anything listens at HOST:PORT, for which Ray would wait many minutes.

    Raises:
        OSError: nothing does.
    """
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def _asked(share: Share) -> dict[str, Any]:
    memory = {} if share.memory is None else {"memory": int(share.memory * GiB)}
    return {"num_cpus": share.cpus, "num_gpus": share.gpus, **memory}


def _room(ray: Any, share: Share) -> int:
    """How many workers the cluster has room for, all machines together.

    Raises:
        ConfigError: not for a single one.
    """
    wanted = {"CPU": share.cpus, "GPU": share.gpus, "memory": (share.memory or 0) * GiB}
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(
        min(int(machine.get(name, 0) // amount) for name, amount in wanted.items() if amount) for machine in machines
    )
    if room == 0:
        largest = {name: max((machine.get(name, 0) for machine in machines), default=0) for name in wanted}
        raise ConfigError(
            f"no machine of the cluster has room for a worker of {share.cpus} CPUs, {share.gpus:g} GPUs and "
            f"{share.memory or 0:g} GiB (the largest: {largest['CPU']:g}, {largest['GPU']:g}, "
            f"{largest['memory'] / GiB:.1f}); ask for less"
        )
    return room
