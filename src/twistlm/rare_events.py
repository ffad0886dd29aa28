"""How likely is a rare event? Its probability under a language model, by a twist that is learned on the way.

The event is that a score reaches a threshold. Plain Monte Carlo needs 1/P draws to see it once. Here a twist is learned
in rounds: draw, find the highest level that enough draws reach, learn to reach it (generalised KL on the pool of all
draws so far), draw again, until the threshold itself is reached often enough (the cross-entropy method: Rubinstein
1999; with the pool of Cornuet et al. 2012). Part of every round is drawn by the twist of the first, which reaches for
what is hardly rare: a way to the event that the others have missed turns up there, with a large weight, and the level
falls until it has been learned. Fresh draws from a mixture of base model, first and last twist then give an unbiased
estimate: no weight p₀/q̄ exceeds one over the base model's share, whatever the twist has failed to see.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from scipy.special import ndtri
from torch import Tensor

from twistlm.bounds import iwae_from_ratios
from twistlm.errors import ConfigError
from twistlm.estimates import CONFIDENCE, Estimate, mean
from twistlm.logmath import ess
from twistlm.pool import Pool, snapshot
from twistlm.proposals import twist_induced
from twistlm.rng import Rng
from twistlm.sources import Setting
from twistlm.target import Target
from twistlm.training import Trainer, TrainingConfig, weighted_divergence
from twistlm.types import ConditionalPotential

logger = logging.getLogger("twistlm")

LEARNING = TrainingConfig(
    loss="gkl", target_source="pool", intermediate_source="pool", pool_batch=1024, num_updates=200, learning_rate=5e-3,
    weight_decay=0.1, evaluate_every=10, patience=40, shrinkages=(0.5,),
)  # fmt: skip
# Of the final draws, from the base model and by the first round's twist; the last one's make the rest.
SHARES = (0.1, 0.2)
# Of every later round, by the first round's twist.
AGAIN = 0.2
# Effective events in the pool, as a multiple of `min_ess`, at which learning ends.
ENOUGH = 4
# Particles of the upper bound.
PARTICLES = 64


@dataclass(frozen=True)
class Search:
    """How hard to look.

    Attributes:
        num_draws: sequences of every round.
        max_rounds: for each threshold.
        num_samples: fresh sequences of every estimate.
        min_ess: effective draws that a level needs to be learned from.
        twist: a registered twist.
        twist_options: its arguments.

    Raises:
        ConfigError: a number is too small.
    """

    num_draws: int = 2048
    max_rounds: int = 12
    num_samples: int = 8192
    min_ess: float = 80.0
    twist: str = "lexical"
    twist_options: tuple[tuple[str, Any], ...] = (("rank", 2),)

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, least in (("num_draws", 64), ("max_rounds", 1), ("num_samples", 64), ("min_ess", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, not {getattr(self, name)}")


@dataclass(frozen=True)
class Probability:
    """P[φ ≥ threshold] under p₀.

    Attributes:
        threshold: of φ.
        value: the unbiased estimate, the mean of p₀/q̄ on the event; if it was never seen, 0 up to the upper limit that
            the base model's draws leave.
        self_normalised: the ratio to the mean of all weights; biased by 1/n, and often narrower for common events.
        log_upper: upper bound on log P, if two of the base model's fresh draws were events; None otherwise.
        hits: events among the fresh draws.
        num_draws: fresh draws.
        ess: effective number of events among them.
        num_tokens: tokens drawn so far, those for earlier thresholds included.
        rounds: of learning for this threshold.
    """

    threshold: float
    value: Estimate
    self_normalised: Estimate
    log_upper: Estimate | None
    hits: int
    num_draws: int
    ess: float
    num_tokens: int
    rounds: int

    @property
    def log10(self) -> tuple[float, float, float]:
        """log₁₀ of the estimate and of its interval's ends; −inf for 0."""
        value, low, high = (
            math.log10(x) if x > 0 else -math.inf for x in (self.value.value, self.value.low, self.value.high)
        )
        return value, low, high

    def plain_tokens(self, num_steps: int) -> float:
        """Tokens that plain Monte Carlo would need for as narrow an interval, at `num_steps` tokens a draw."""
        p, half = self.value.value, self.value.half_width
        quantile = float(ndtri(0.5 + CONFIDENCE / 2))
        return quantile**2 * p * (1 - p) / half**2 * num_steps if half > 0 else math.inf

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "threshold": self.threshold,
            "probability": self.value.as_dict(),
            "self_normalised": self.self_normalised.as_dict(),
            "log_upper": None if self.log_upper is None else self.log_upper.as_dict(),
            "hits": self.hits,
            "num_draws": self.num_draws,
            "ess": self.ess,
            "num_tokens": self.num_tokens,
            "rounds": self.rounds,
        }


def probability(
    target: Target, thresholds: Sequence[float], *, search: Search | None = None, seed: int = 0,
    report: Callable[[str], None] = logger.info,
) -> list[Probability]:  # fmt: skip
    """P[φ ≥ threshold] for each threshold, from easy to hard, each starting from the last one's twist.

    Args:
        target: base model, prompt and length; its potential is the score.
        thresholds: of φ; any order.
        search: how hard to look.
        seed: of everything random.
        report: is told of every round.

    Raises:
        ConfigError: the target differs by a condition, a threshold is not above 0, or none is given.
    """
    if not thresholds or not min(thresholds) > 0:
        raise ConfigError(f"thresholds must be above 0, at least one, not {list(thresholds)}")
    if isinstance(target.potential, ConditionalPotential):
        raise ConfigError("a target that differs by its condition has no single score; use a target without one")
    climb = _Climb(target, search or Search(), Rng(seed, ("probability",)), report)
    return [climb.reach(threshold) for threshold in sorted(thresholds)]


class _Climb:
    """The pool of all rounds' draws, and the twist as far as it has learned."""

    def __init__(self, target: Target, search: Search, rng: Rng, report: Callable[[str], None] = logger.info) -> None:
        self.target, self.search, self.rng, self.report = target, search, rng, report
        twist = target.build_twist(rng.fork("twist"), search.twist, dict(search.twist_options))
        self.model = target.twisted(twist)
        self.module = twist.module
        self.pool = Pool()
        self.num_tokens = 0

    def reach(self, threshold: float) -> Probability:
        """Learn until the threshold is reached often enough; then estimate."""
        goal, rounds = math.log(threshold), 0
        while rounds < self.search.max_rounds:
            self._draw()
            rounds += 1
            level = min(goal, self._level())
            self.report(
                f"round {rounds}: of {sum(self.pool.counts):,} draws, {self._events(goal):.0f} effective ones reach "
                f"{threshold:g}; learning to reach {math.exp(level):.3g}"
            )
            self._learn(level)
            if level == goal and self._events(goal) >= ENOUGH * self.search.min_ess:
                break
        else:
            logger.warning(
                "%d rounds were not enough to learn how φ reaches %g: the interval may miss what was never seen. Raise "
                "num_draws or max_rounds", rounds, threshold,
            )  # fmt: skip
        return self._estimate(threshold, rounds)

    def _draw(self) -> None:
        """One round, part of it by the first round's twist as soon as others have followed."""
        again = round(AGAIN * self.search.num_draws) if len(self.pool.counts) > 1 else 0
        self._grow(self.pool, self.rng, self.search.num_draws - again)
        if again:
            self._grow(self.pool, self.rng, again, generation=1)

    def _grow(self, pool: Pool, rng: Rng, count: int, generation: int | None = None) -> None:
        pool.grow(
            rng, self.model, self.target.bound_potential, prompt=self.target.prompt_tokens,
            num_steps=self.target.num_tokens, count=count, proposal=twist_induced, generation=generation,
        )  # fmt: skip
        self.num_tokens += count * self.target.num_tokens

    def _events(self, level: float) -> float:
        """Effective number of draws in the pool that reach the level."""
        assert self.pool.samples is not None
        log_w = self.pool.final_log_ratio[self.pool.samples.log_phi >= level]
        return float(ess(log_w)) if len(log_w) else 0.0

    def _level(self) -> float:
        """The highest score that draws of enough effective number reach; that of the best draw if none is."""
        assert self.pool.samples is not None
        log_phi, log_w = self.pool.samples.log_phi, self.pool.final_log_ratio
        order = log_phi.argsort(descending=True)
        weights = log_w[order].exp()
        enough = (weights.cumsum(0).square() / weights.square().cumsum(0) >= self.search.min_ess).nonzero()
        level = float(log_phi[order[int(enough[0])]]) if len(enough) else -math.inf
        return level if math.isfinite(level) else float(log_phi.max())

    def _learn(self, level: float) -> None:
        """Fit the twist to the event that `level` is reached."""
        assert self.pool.samples is not None
        log_phi = torch.where(self.pool.samples.log_phi >= level, 0.0, -torch.inf).double()
        pool = replace(self.pool, samples=replace(self.pool.samples, log_phi=log_phi))
        rng = self.rng.fork("learn", len(log_phi))
        order = rng.uniform((1, len(log_phi)))[0].argsort()
        held_out, teaching = pool.select(order[: len(order) // 5]), pool.select(order[len(order) // 5 :])
        assert held_out.samples is not None
        assert teaching.samples is not None
        if not (held_out.samples.log_phi.isfinite().any() and teaching.samples.log_phi.isfinite().any()):
            return
        target = self.target
        setting = Setting(self.model, target.bound_potential, target.prompt_tokens, target.num_tokens)
        log_w = held_out.final_log_ratio + held_out.samples.log_phi
        criterion = weighted_divergence(rng.fork("judge"), held_out.samples, log_w, setting)
        Trainer(rng, setting, LEARNING, criterion, pool=teaching).train()

    def _estimate(self, threshold: float, rounds: int) -> Probability:
        """From fresh draws, which have taught none of the three proposals that make them."""
        total, rng = self.search.num_samples, self.rng.fork("fresh", f"{threshold:g}")
        fresh, last = Pool(), snapshot(self.module)
        proposals = [(twist, round(share * total)) for twist, share in zip(self.pool.twists, SHARES, strict=False)]
        for twist, count in (*proposals, (last, total - sum(count for _, count in proposals))):
            self.module.load_state_dict(twist)
            self._grow(fresh, rng, count)
        assert fresh.samples is not None
        assert fresh.log_q is not None
        event, log_w, from_base = fresh.samples.log_phi >= math.log(threshold), fresh.final_log_ratio, fresh.counts[0]
        value = mean(within(log_w.exp() * event, fresh.counts))
        if not bool(event.any()):
            limit = 1 - (1 - CONFIDENCE) ** (1 / (from_base + self.pool.counts[0]))
            value = Estimate(0.0, 0.0, limit, len(event))
        # The bound from above needs exact samples: the base model's events, under the last proposal alone.
        ratios = fresh.samples.log_p.sum(-1) - fresh.log_q[-1, :, -1]
        own = torch.where(event, ratios, -torch.inf)[-fresh.counts[-1] :]
        exact, upper = ratios[:from_base][event[:from_base]], None
        if len(exact) >= 2 and len(own) >= PARTICLES:
            upper = iwae_from_ratios(own, exact, PARTICLES).upper
        return Probability(
            threshold=threshold, value=value, self_normalised=ratio(log_w.exp(), event, fresh.counts), log_upper=upper,
            hits=int(event.sum()), num_draws=len(event), ess=float(ess(torch.where(event, log_w, -torch.inf))),
            num_tokens=self.num_tokens, rounds=rounds,
        )  # fmt: skip


def within(x: Tensor, counts: Sequence[int]) -> Tensor:
    """`x` [n] with every stratum's mean moved to the overall one: so many were drawn from each, which is no chance."""
    return torch.cat([part - part.mean() for part in x.split(list(counts))]) + x.mean()


def ratio(weights: Tensor, event: Tensor, counts: Sequence[int]) -> Estimate:
    """Σ w 1[event] / Σ w, with the interval of its linear part (delta method)."""
    value = float((weights * event).sum() / weights.sum())
    return mean(within(value + weights * (event.double() - value) / weights.mean(), counts))
