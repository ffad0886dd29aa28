"""What a checkpoint remembers, how that is packed into a file and checked when it is unpacked, and who keeps it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

from annotated_types import Ge
from torch import Tensor

from twistlm.core.errors import RunError
from twistlm.core.storage import as_type, check_tensors


@dataclass
class Progress:
    """Where training is: everything but the weights that a checkpoint has to remember.

    Attributes:
        done: updates.
        best_value, best_update: of the held-out criterion.
        stopped: training is over.
        collapsed: consecutive updates with next to no effective positives.
        warnings: codes of those that have been given; older checkpoints have names or texts here.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (pydantic's, and no field)

    done: Annotated[int, Ge(0)] = 0
    best_value: float = math.inf
    best_update: int = 0
    stopped: bool = False
    collapsed: int = 0
    warnings: list[str] = field(default_factory=list)


class Store(Protocol):
    """Where a training keeps its metrics, its checkpoints and its twist: a run's folder (`runs.folder`)."""

    @property
    def checkpoint(self) -> Path:
        """The checkpoint's file, for errors."""

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add a line."""

    def metrics(self) -> list[dict[str, Any]]:
        """Every line."""

    def truncate_metrics(self, count: int) -> list[dict[str, Any]]:
        """Keep the first `count` lines."""

    def save_checkpoint(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Everything that continuing needs."""

    def load_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What `save_checkpoint` wrote, or None."""

    def save_twist(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """The finished twist."""


Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Moment:
    """What looking at the twist changes in a training: where it is, how many rows it has, the best twist so far."""

    progress: Progress
    rows: int
    best: Tensors


@dataclass(frozen=True)
class _Header:
    """What a checkpoint says of itself: where training is, and how many lines of metrics belong to it."""

    progress: Progress
    rows: Annotated[int, Ge(0)]


@dataclass(frozen=True)
class Checkpoint:
    """Everything that continuing needs.

    Attributes:
        progress: where training is.
        rows: lines of metrics that belong to it.
        twist, best: parameters now, and at the best update.
        optimiser: what it keeps of each parameter, by the parameter's number.
        pool: parameters with which each generation of the pool was drawn: drawing again is cheaper than keeping it.
        average: the running mean of the parameters (`training.averaging`), if there is one.
    """

    progress: Progress
    rows: int
    twist: Tensors
    best: Tensors
    optimiser: dict[int, Tensors]
    pool: Sequence[Tensors] = ()
    average: Tensors = field(default_factory=dict)

    def save(self, store: Store) -> None:
        """Into one file, atomically."""
        tensors = _under("twist", self.twist) | _under("best", self.best) | _under("average", self.average)
        for index, values in self.optimiser.items():
            tensors |= _under(f"optimiser.{index}", values)
        for number, twist in enumerate(self.pool):
            tensors |= _under(f"pool.{number}", twist)
        store.save_checkpoint(tensors, {"progress": self.progress.__dict__, "rows": self.rows})

    @staticmethod
    def load(
        store: Store,
        twist: Tensors,
        kept: Sequence[Mapping[str, Tensor]],
        num_updates: int,
        average: Mapping[str, Tensor] | None = None,
    ) -> "Checkpoint | None":
        """What the store holds; None if nothing has been saved.

        Args:
            store: where it is.
            twist: parameters and buffers of a twist like the one that was saved.
            kept: what the optimiser keeps of each parameter that is trained (`optimisers.kept`).
            num_updates: the most that there can be.
            average: what is kept of the running mean; none if there is no mean.

        Raises:
            RunError: the file is damaged, of another twist, or knows more than there is.
        """
        saved = store.load_checkpoint()
        if saved is None:
            return None
        tensors, metadata = saved
        where = str(store.checkpoint)
        header = as_type(_Header, metadata, where)
        done, rows, lines = header.progress.done, header.rows, len(store.metrics())
        if done > num_updates or rows > lines:
            raise RunError(
                f"{where} knows of {done} updates and {rows} lines of metrics, and there are {num_updates} and "
                f"{lines}; start over with --overwrite"
            )
        now, best = _below("twist", tensors), _below("best", tensors)
        pool: list[Tensors] = []
        while generation := _below(f"pool.{len(pool)}", tensors):
            pool.append(generation)
        for each in (now, best, *pool):
            check_tensors(each, twist, where)
        mean = _below("average", tensors)
        check_tensors(mean, average or {}, where)
        return Checkpoint(header.progress, rows, now, best, _optimiser_state(tensors, kept, where), pool, mean)


def _optimiser_state(tensors: Tensors, kept: Sequence[Mapping[str, Tensor]], where: str) -> dict[int, Tensors]:
    """What the optimiser kept of each parameter; nothing before the first update.

    Raises:
        RunError: it is not what it keeps of these parameters.
    """
    found = _below("optimiser", tensors)
    expected = {f"{index}.{name}": like for index, each in enumerate(kept) for name, like in each.items()}
    check_tensors(found, expected if found else {}, where)
    return {index: _below(str(index), found) for index in range(len(kept) if found else 0)}


def _under(name: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {f"{name}.{each}": tensor for each, tensor in tensors.items()}


def _below(name: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors below the name, by the rest of theirs."""
    start = f"{name}."
    return {each[len(start) :]: tensor for each, tensor in tensors.items() if each.startswith(start)}
