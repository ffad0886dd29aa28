"""Losses that learn twists: one small file each, `Scored → scalar`.

A loss says which weighted batches it wants ("target": weighted towards σ; "intermediate": weighted towards π_t at each
t) and whether it needs log Σ_v p₀ψ_t. Where the samples come from is another setting (`twistlm.sources`).
"""

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from twistlm.registry import register

F = TypeVar("F", bound=Callable[..., Tensor])

ROLES = ("target", "intermediate")


def loss(name: str, *, sources: tuple[str, ...], normaliser: bool = False) -> Callable[[F], F]:
    """Decorator: register a loss under the method's published name.

    Args:
        name: the name on the command line.
        sources: the roles of its arguments, in order.
        normaliser: whether it reads `Scored.log_normaliser`, a pass over V with gradient.
    """
    return register("loss", name, sources=sources, normaliser=normaliser)
