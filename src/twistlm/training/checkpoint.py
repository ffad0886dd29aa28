"""What a checkpoint remembers, and who keeps it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

from annotated_types import Ge
from torch import Tensor


@dataclass
class Progress:
    """Where training is: everything but the weights that a checkpoint has to remember."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (pydantic's, and no field)

    done: Annotated[int, Ge(0)] = 0
    best_value: float = math.inf
    best_update: int = 0
    stopped: bool = False
    collapsed: int = 0
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says of itself: where training is, and how many lines of metrics belong to it."""

    progress: Progress
    rows: Annotated[int, Ge(0)]


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


def below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
