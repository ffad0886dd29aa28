"""Proposals: the distribution q_t that the next token is drawn from.

A proposal names the terms whose sum is its unnormalised log density over the vocabulary; `draw` does the rest, the
same for all: one exact draw per particle, and the densities of what was drawn.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twistlm.core.errors import ConfigError
from twistlm.core.kernels.categorical import CategoricalTable, Scratch
from twistlm.core.registry import lookup, register
from twistlm.core.rng import Rng
from twistlm.sampling.particles import NextToken
from twistlm.sampling.samples import Siblings

Proposal = Callable[[NextToken], tuple[Tensor, ...]]


@register("proposal", "base")
def base(following: NextToken) -> tuple[Tensor, ...]:
    """q = p₀: the base model itself; the twists only weigh."""
    return (following.logits,)


@register("proposal", "twist_induced")
def twist_induced(following: NextToken) -> tuple[Tensor, ...]:
    """q ∝ p₀ ψ_t: minimises the variance of the incremental weights (Zhao et al. 2024, proposition 3.3)."""
    return (following.logits,) if following.inducing is None else (following.logits, following.inducing)


@register("proposal", "tempered", parameter="exponent")
def tempered(exponent: float) -> Proposal:
    """q ∝ p₀ ψ_t^λ with 0 ≤ λ ≤ 1 (`tempered:0.5`): hedges against a twist that is too sure of itself.

    Raises:
        ConfigError: the exponent is outside [0, 1].
    """
    if not 0.0 <= exponent <= 1.0:
        raise ConfigError(
            f"proposal 'tempered' takes an exponent between 0 (base) and 1 (twist-induced), not {exponent}"
        )

    def proposal(following: NextToken) -> tuple[Tensor, ...]:
        # Zero times the −∞ of a constraint would be no number.
        if following.inducing is None or exponent == 0.0:
            return (following.logits,)
        return following.logits, exponent * following.inducing

    return proposal


@register("proposal", "defensive", parameter="share")
def defensive(share: float) -> Proposal:
    """q = (1 − λ) q_ψ + λ p₀ with 0 ≤ λ ≤ 1 (`defensive:0.25`): no token is drawn less often than λ p₀ would.

    The defensive mixture of Hesterberg (1995) at every token: p₀/q is at most 1/λ.

    Raises:
        ConfigError: the share is outside [0, 1].
    """
    if not 0.0 <= share <= 1.0:
        raise ConfigError(f"proposal 'defensive' takes a share of p₀ between 0 (none) and 1 (base), not {share}")

    def proposal(following: NextToken) -> tuple[Tensor, ...]:
        if following.inducing is None or share == 1.0:
            return (following.logits,)
        if share == 0.0:
            return twist_induced(following)
        precision = torch.promote_types(following.logits.dtype, torch.float32)
        logits, inducing = following.logits.to(precision), following.inducing.to(precision)
        log_p, log_q = torch.log_softmax(logits, -1), torch.log_softmax(logits + inducing, -1)
        # Where ψ is 0 for every token there is no q_ψ, and p₀ draws alone.
        log_q = log_q.masked_fill(log_q.isnan(), -torch.inf)
        return (torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share)),)

    return proposal


def get_proposal(name: str) -> Proposal:
    """The proposal called `name`; one with a parameter is written `name:value`.

    Raises:
        ConfigError: there is none of that name, or its parameter is missing or not a number.
    """
    name, parameter, value = name.partition(":")
    entry = lookup("proposal", name)
    made: Proposal = entry.value
    if "parameter" not in entry.options:
        if parameter:
            raise ConfigError(f"proposal {name!r} takes no parameter; write {name!r}, not '{name}:{value}'")
        return made
    try:
        return entry.value(float(value))  # type: ignore[no-any-return]
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"proposal {name!r} needs its {entry.options['parameter']} as '{name}:0.5', not {value!r}"
        ) from error


@dataclass(frozen=True)
class Drawn:
    """B drawn (or forced) tokens with their log densities, float64 [B] each; K siblings of each if asked for."""

    tokens: Tensor
    log_p: Tensor
    log_psi: Tensor
    log_q: Tensor
    siblings: Siblings | None = None

    @staticmethod
    def concatenate(parts: Sequence["Drawn"], order: Tensor) -> "Drawn":
        """The tokens of all parts, of which the k-th is the `order[k]`-th of the whole."""
        place = order.argsort()

        def joined(tensors: list[Tensor]) -> Tensor:
            return torch.cat(tensors)[place]

        tokens, log_p, log_psi, log_q = (
            joined([getattr(part, name) for part in parts]) for name in ("tokens", "log_p", "log_psi", "log_q")
        )
        families = [part.siblings for part in parts if part.siblings is not None]
        return Drawn(tokens, log_p, log_psi, log_q, Siblings.combined(families, joined))


def draw(
    rng: Rng,
    following: NextToken,
    proposal: Proposal,
    forced: Tensor,
    num_siblings: int = 0,
    scratch: Scratch | None = None,
    paused: Tensor | None = None,
) -> Drawn:
    """Draw each particle's next token from `proposal`, except where `forced` [B] is not −1.

    Particles that are `paused` [B] draw from p₀ instead, and log q says so. A prefix from which no token has positive
    weight yields token 0 with log ψ = −inf and log q = 0: a dead particle.
    """
    if paused is not None and bool(paused.any()):
        groups = [(which.nonzero().squeeze(-1), made) for which, made in ((paused, base), (~paused, proposal))]
        parts = [
            draw(rng, following.of(index), made, forced[index], num_siblings, scratch)
            for index, made in groups
            if len(index)
        ]
        return Drawn.concatenate(parts, torch.cat([index for index, _ in groups]))
    terms = proposal(following)
    table = CategoricalTable.from_logits(*terms, scratch=scratch)
    rows = following.rows
    free = forced < 0
    tokens = forced.clone()
    tokens[free] = rng.categorical(table, rows[free])
    if terms[0] is following.logits:
        log_p_total = table.log_total_first
    else:
        log_p_total = torch.logsumexp(following.logits.double(), -1)

    def densities(rows: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        log_p = following.logits[rows, tokens].double() - log_p_total[rows]
        log_q = torch.stack([term[rows, tokens].double() for term in terms]).sum(0) - table.log_total[rows]
        return log_p, log_q

    log_p, log_q = densities(rows, tokens)
    log_psi = torch.zeros_like(log_p) if following.log_psi is None else following.log_psi[rows, tokens].double()
    dead = table.log_total[rows].isneginf()
    siblings = None
    if num_siblings:
        repeated = rows.repeat_interleave(num_siblings)
        others = rng.categorical(table, repeated)
        log_p_others, log_q_others = densities(repeated, others)
        # Of a dead prefix neither is a number.
        log_ratio = (log_p_others - log_q_others).masked_fill(dead.repeat_interleave(num_siblings), -torch.inf)
        siblings = Siblings(others, log_ratio).map(lambda x: x.view(-1, num_siblings))
    return Drawn(tokens, log_p, log_psi.masked_fill(dead, -torch.inf), log_q.masked_fill(dead, 0.0), siblings)
