"""Losses that learn twists: one small file each, `Scored → scalar`.

A loss says in which roles it wants batches, and whether it needs log Σ_v p₀ψ_t. Where the samples come from is another
setting (`training.sources`). The roles are: "target", weights towards σ, the same at every t; "intermediate", towards
π_t at each t; "base", towards p₀ at each t; "labelled", towards p₀ of whole sequences, whose φ labels every prefix, or
any prefixes that have a label of their own each; "drawn", equal weights, whatever the sequences were drawn from.
Weights are [B, T].
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from twistlm.core.errors import ConfigError
from twistlm.core.registry import Entry, lookup, register
from twistlm.training.scored import Scored

F = TypeVar("F", bound=Callable[..., Tensor])

# log φ of an impossible text is −∞, at a finite distance from which no twist would ever be.
LOWEST = -40.0


def end(scored: Scored) -> Tensor:
    """log φ [B, 1] in log ψ's precision, finite."""
    return finite(scored.log_phi).to(scored.log_psi.dtype).unsqueeze(-1)


def finite(log_phi: Tensor) -> Tensor:
    """log φ with `LOWEST` for −∞, or the lowest of the others if that is lower still."""
    impossible = log_phi.isneginf()
    others = log_phi[~impossible]
    return torch.where(impossible, others.min().clamp_max(LOWEST) if others.numel() else LOWEST, log_phi)


def loss(
    name: str,
    *,
    sources: tuple[str, ...],
    normaliser: bool = False,
    probability: bool = False,
    on_policy: bool = False,
    inner_steps: int = 1,
    scale: bool = False,
) -> Callable[[F], F]:
    """Decorator: register a loss under the method's published name.

    Args:
        name: the name on the command line.
        sources: the roles of its arguments, in order.
        normaliser: whether it reads `Scored.log_normaliser`, a pass over V with gradient.
        probability: whether ψ must be a probability: the twist's log ψ is then read as a logit; needs φ ≤ 1.
        on_policy: whether its sequences must be fresh draws from the current proposal.
        inner_steps: optimiser steps on each batch.
        scale: whether it asks for ψ itself, not just up to a factor, so that training has to start at its scale.
    """
    return register(
        "loss",
        name,
        sources=sources,
        normaliser=normaliser,
        probability=probability,
        on_policy=on_policy,
        inner_steps=inner_steps,
        scale=scale,
    )


@dataclass(frozen=True)
class Objective:
    """A weighted sum of registered losses: what training minimises.

    Attributes:
        parts: each loss with its weight.
    """

    parts: tuple[tuple[float, Entry], ...]

    def __call__(self, scored: Mapping[str, Scored]) -> Tensor:
        """The sum's value, a scalar, from one `Scored` for each of `roles`."""
        terms = [
            weight * entry.value(*[scored[role] for role in entry.options["sources"]]) for weight, entry in self.parts
        ]
        total: Tensor = sum(terms[1:], terms[0])
        return total

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of all parts, each once."""
        return tuple(dict.fromkeys(role for _, entry in self.parts for role in entry.options["sources"]))

    @property
    def normaliser(self) -> bool:
        """Whether a part reads log Σ_v p₀ψ_t."""
        return any(entry.options["normaliser"] for _, entry in self.parts)

    @property
    def probability(self) -> bool:
        """Whether ψ must be a probability."""
        return any(entry.options["probability"] for _, entry in self.parts)

    @property
    def on_policy(self) -> bool:
        """Whether a part needs fresh draws from the current proposal."""
        return any(entry.options["on_policy"] for _, entry in self.parts)

    @property
    def scale(self) -> bool:
        """Whether a part asks for ψ itself, not just up to a factor."""
        return any(entry.options["scale"] for _, entry in self.parts)

    @property
    def inner_steps(self) -> int:
        """Optimiser steps on each batch."""
        return max(int(entry.options["inner_steps"]) for _, entry in self.parts)


def objective(expression: str) -> Objective:
    """The losses that `expression` names: "ctl", or a weighted sum such as "0.7*ctl + 0.3*rl".

    Raises:
        ConfigError: a name is unknown, a weight is not a positive number, or not all parts agree whether ψ is a
            probability.
    """
    parts = []
    for term in expression.split("+"):
        weight, times, name = term.rpartition("*")
        try:
            value = float(weight) if times else 1.0
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise ConfigError(
                f"loss {expression!r}: the weight {weight.strip()!r} is not a positive number; write 0.7*ctl + 0.3*rl"
            )
        parts.append((value, lookup("loss", name.strip())))
    if len({entry.options["probability"] for _, entry in parts}) > 1:
        raise ConfigError(f"loss {expression!r} mixes losses for which ψ is a probability with others; choose one kind")
    return Objective(tuple(parts))
