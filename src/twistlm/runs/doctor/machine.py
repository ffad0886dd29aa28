"""The machine as far as speed and room depend on it, and the environment variables that matter."""

import os
import platform
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")

GIB = 2**30
# Where Linux says what a container may use.
CPU_LIMIT, MEMORY_LIMIT = Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/memory.max")
NVIDIA = Path("/dev/nvidia0")
# What disks are for.
HERE, CACHE = "this folder", "the cache"

# What each variable does; those of secrets are never shown.
VARIABLES = {
    "OMP_WAIT_POLICY": "PASSIVE lets idle threads sleep; ACTIVE costs several times their worth where cores are shared",
    "OMP_NUM_THREADS": "threads of torch on the CPU; by default one for each core",
    "CUDA_VISIBLE_DEVICES": "the GPUs that may be used; empty for none",
    "TWISTLM_CACHE": "where converted models and compiled constraints are kept; by default ~/.cache/twistlm",
    "TWISTLM_PROGRESS": "0 for no progress bars",
    "TWISTLM_API_KEY": "what `twistlm serve` asks its clients for",
    "TWISTLM_URL": "where garak finds what `twistlm serve` serves; by default http://127.0.0.1:8000/v1",
    "HF_HOME": "where models of the hub are kept; by default ~/.cache/huggingface",
    "HF_HUB_OFFLINE": "1: nothing is downloaded, and what is here is used",
    "HF_TOKEN": "for models of the hub that want an account",
}
SECRETS = ("TWISTLM_API_KEY", "HF_TOKEN")


@dataclass(frozen=True)
class Disk:
    """Room at a place.

    Attributes:
        what: it is for.
        path: where.
        free_gib: in GiB.
        writable: whether it can be written to.
    """

    what: str
    path: str
    free_gib: float
    writable: bool


@dataclass(frozen=True)
class Variable:
    """An environment variable: its value (None where it is not set), and what it does ("" where nothing reads it)."""

    name: str
    value: str | None
    about: str


@dataclass(frozen=True)
class Machine:
    """What there is.

    Attributes:
        system: operating system and architecture.
        python: its version.
        cores: that this process may use, by its affinity and by the limit of its container.
        all_cores: of the machine.
        memory_gib, free_gib: in GiB; of the container, where that has less.
        disks: the folder that we are in, and the cache.
        variables: those that are set, and those that matter.
    """

    system: str
    python: str
    cores: float
    all_cores: int
    memory_gib: float
    free_gib: float
    disks: tuple[Disk, ...]
    variables: tuple[Variable, ...]

    @staticmethod
    def here(cache: Path | None) -> "Machine":
        """This one; `cache` is where twistlm keeps what can be made again, None where that is not known."""
        memory = psutil.virtual_memory()
        limit = min(memory.total, _limit(MEMORY_LIMIT, int) or memory.total)
        return Machine(
            system=f"{platform.system()} {platform.release()} {platform.machine()}",
            python=platform.python_version(),
            cores=_cores(),
            all_cores=os.cpu_count() or 1,
            memory_gib=limit / GIB,
            free_gib=min(memory.available, limit) / GIB,
            disks=(_disk(HERE, Path.cwd()), *(() if cache is None else (_disk(CACHE, cache),))),
            variables=_variables(),
        )


@dataclass(frozen=True)
class Torch:
    """How torch is built, and what it uses.

    Attributes:
        build: "CPU", or what of: "CUDA 12.8".
        num_threads: on the CPU.
        gpus: name and memory of each.
        idle_gpu: there is a GPU of NVIDIA that this build cannot use.
    """

    build: str
    num_threads: int
    gpus: tuple[str, ...]
    idle_gpu: bool

    @staticmethod
    def here() -> "Torch":
        """As imported now."""
        import torch

        kinds = {"CUDA": torch.version.cuda, "HIP": torch.version.hip}
        build = next((f"{name} {version}" for name, version in kinds.items() if version), "CPU")
        gpus = []
        if torch.cuda.is_available():
            for number in range(torch.cuda.device_count()):
                about = torch.cuda.get_device_properties(number)
                gpus.append(f"{about.name}, {about.total_memory / GIB:.0f} GiB")
        return Torch(build, torch.get_num_threads(), tuple(gpus), NVIDIA.exists() and build == "CPU")


def _cores() -> float:
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def share(text: str) -> float:
        quota, period = text.split()
        return int(quota) / int(period)

    return min(float(mine), _limit(CPU_LIMIT, share) or float(mine))


def _limit(file: Path, read: Callable[[str], T]) -> T | None:
    """A limit of the container; None where there is none ("max"), or no such file."""
    with suppress(OSError, ValueError):
        return read(file.read_text())
    return None


def _disk(what: str, place: Path) -> Disk:
    there = next((each for each in (place, *place.absolute().parents) if each.exists()), Path("/"))
    return Disk(what, str(place), shutil.disk_usage(there).free / GIB, os.access(there, os.W_OK))


def _variables() -> tuple[Variable, ...]:
    """Those that matter, and those of ours that nothing reads: a name that is misspelt."""
    unread = [name for name in sorted(os.environ) if name.startswith("TWISTLM_") and name not in VARIABLES]
    shown = {name: "set" if name in SECRETS and os.environ.get(name) else os.environ.get(name) for name in VARIABLES}
    return (
        *(Variable(name, shown[name], about) for name, about in VARIABLES.items()),
        *(Variable(name, os.environ[name], "") for name in unread),
    )
