"""Losses that learn twists: one small file each, `Scored → scalar`.

A loss says in which roles it wants batches, and whether it needs log Σ_v p₀ψ_t. Where the samples come from is another
setting (`twistlm.sources`). The roles are: "target", weights [B] towards σ; "intermediate", weights [B', T] towards π_t
at each t; "base", weights [B, T] towards p₀ at each t; "drawn", equal weights [B], whatever they were drawn from.
"""

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from twistlm.registry import register

F = TypeVar("F", bound=Callable[..., Tensor])

# Each role with the training setting that names its source. All but the target need independent draws.
ROLES = {
    "target": "target_source",
    "intermediate": "intermediate_source",
    "base": "intermediate_source",
    "drawn": "intermediate_source",
}


def loss(
    name: str, *, sources: tuple[str, ...], normaliser: bool = False, probability: bool = False
) -> Callable[[F], F]:
    """Decorator: register a loss under the method's published name.

    Args:
        name: the name on the command line.
        sources: the roles of its arguments, in order.
        normaliser: whether it reads `Scored.log_normaliser`, a pass over V with gradient.
        probability: whether ψ must be a probability: the twist's log ψ is then read as a logit; needs φ ≤ 1.
    """
    return register("loss", name, sources=sources, normaliser=normaliser, probability=probability)
