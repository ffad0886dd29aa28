"""All that `twistlm doctor` finds out, and what of it is a problem."""

import math
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from packaging.specifiers import SpecifierSet

from twistlm.core.errors import TwistError
from twistlm.core.progress import bar
from twistlm.runs.doctor.installed import FOR_DEVELOPERS, Installed
from twistlm.runs.doctor.machine import CACHE, Machine, Torch

if TYPE_CHECKING:
    from twistlm.runs.doctor.at_hand import AtHand
    from twistlm.runs.doctor.speed import Speed

T = TypeVar("T")

# GiB below which a disk will soon be full: a larger model and a few runs.
LITTLE = 1.0


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be.

    Attributes:
        what: it is.
        remedy: what to do.
        needed: whether twistlm does not work as long as it is so; else it costs speed, or something optional.
    """

    what: str
    remedy: str
    needed: bool = False


@dataclass(frozen=True)
class Examination:
    """What was found.

    Attributes:
        installed: packages and extras.
        machine: cores, memory, disks, variables.
        torch: how torch is built; None if it cannot be imported.
        at_hand: models, classifiers and scorers; empty where looking for them failed.
        speed: of sampling; None if it was not measured.
        problems: those that are needed first.
    """

    installed: Installed
    machine: Machine
    torch: Torch | None
    at_hand: "tuple[AtHand, ...]"
    speed: "Speed | None"
    problems: tuple[Problem, ...]

    @property
    def is_well(self) -> bool:
        """Whether nothing that is needed is broken."""
        return not any(each.needed for each in self.problems)

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        speed = self.speed
        estimates = {} if speed is None else {name: asdict(each) for name, each in speed.estimates.items()}
        return {
            "is_well": self.is_well,
            **asdict(self),
            "speed": None if speed is None else {**asdict(speed), **estimates},
        }


def examine(*, speed: bool = True) -> Examination:
    """Look at everything, which takes as long as importing everything.

    Args:
        speed: sample for a few seconds, too.
    """
    said = Installed.said()
    modules = said.modules()
    with bar("importing packages", len(modules)) as report:
        installed = said.tried(modules, report)
    problems = list(_packages(installed))
    # What ends another process would end this one, too.
    works = bool(installed.version) and all(each.version and not each.is_broken for each in installed.packages)
    torch, cache = _foundation() if works else (None, None)
    found, measured = None, None
    if works:
        found = _attempted(_at_hand, "looking for models fails", problems)
        measured = _attempted(_speed, "sampling from the bundled model fails", problems) if speed else None
    machine = Machine.here(cache)
    problems += [*_models(found or ()), *_machine(machine, torch)]
    return Examination(
        installed, machine, torch, found or (), measured, tuple(sorted(problems, key=lambda each: not each.needed))
    )


def _foundation() -> tuple[Torch, Path]:
    from twistlm.core.storage import cache_folder

    return Torch.here(), cache_folder()


def _at_hand() -> "tuple[AtHand, ...]":
    from twistlm.runs.doctor.at_hand import at_hand

    return tuple(at_hand())


def _speed() -> "Speed":
    from twistlm.runs.doctor.speed import MOST, Speed

    with bar("sampling", MOST) as report:
        return Speed.here(lambda done: report(done, ""))


def _attempted(look: Callable[[], T], what: str, problems: list[Problem]) -> T | None:
    """What `look` finds; None where it fails, for whatever reason, which is then a problem."""
    try:
        return look()
    except TwistError as error:
        said, _, remedy = str(error).rpartition(": ")
        problems.append(Problem(f"{what}: {said or remedy}", remedy, needed=True))
    except Exception as error:  # the doctor is asked because something is broken, and must say what
        said = " ".join(f"{type(error).__name__}: {error}".split())
        problems.append(
            Problem(f"{what} ({said})", "put other problems right first; else report this one", needed=True)
        )
    return None


def _packages(installed: Installed) -> Iterator[Problem]:
    if not installed.version:
        yield Problem("twistlm is not installed as a package: nothing says what it needs", "pip install twistlm", True)
        return
    python = platform.python_version()
    if not SpecifierSet(installed.python).contains(python, prereleases=True):
        yield Problem(f"Python is {python}, and twistlm wants {installed.python}", "make another environment", True)
    for each in installed.packages:
        if each.problem:
            yield Problem(f"{each.name} {each.problem}", each.remedy, True)
    said = {each.name for each in installed.packages}
    for extra in installed.extras:
        if extra.name in FOR_DEVELOPERS:
            continue
        for each in extra.packages:
            # One that is missing is no problem: the extra is not asked for.
            if each.problem and each.version and each.name not in said:
                said.add(each.name)
                yield Problem(f"{each.name}, of the extra {extra.name}, {each.problem}", each.remedy)


def _models(found: "Sequence[AtHand]") -> Iterator[Problem]:
    for each in found:
        if each.needed and each.problem:
            said, _, remedy = each.problem.rpartition(": ")
            yield Problem(said, remedy, True)


def _machine(machine: Machine, torch: Torch | None) -> Iterator[Problem]:
    cores = max(1, math.floor(machine.cores))
    if torch is not None and torch.num_threads > math.ceil(machine.cores):
        what = f"torch uses {torch.num_threads} threads on {machine.cores:g} cores, which slows all of them down"
        yield Problem(what, f"export OMP_NUM_THREADS={cores}")
    if torch is not None and torch.idle_gpu:
        what = "there is a GPU of NVIDIA, and torch is built without CUDA"
        yield Problem(what, "install a build of torch for it, as torch's own page says")
    for each in machine.variables:
        if each.name == "OMP_WAIT_POLICY" and (each.value or "").upper() == "ACTIVE":
            yield Problem("OMP_WAIT_POLICY=ACTIVE lets idle threads spin", "export OMP_WAIT_POLICY=PASSIVE")
        if not each.about:
            yield Problem(f"nothing reads the variable {each.name}", f"correct its name, or unset {each.name}")
    for disk in machine.disks:
        if not disk.writable:
            remedy = "set TWISTLM_CACHE to a folder of yours" if disk.what == CACHE else "work in another folder"
            yield Problem(f"{disk.what} ({disk.path}) cannot be written to", remedy)
        elif disk.free_gib < LITTLE:
            yield Problem(f"{disk.what} ({disk.path}) has room for {disk.free_gib:.1f} GiB only", "make room")
    if machine.free_gib < LITTLE:
        yield Problem(
            f"{machine.free_gib:.1f} GiB of memory are free", "end other processes, or ask for fewer sequences"
        )
