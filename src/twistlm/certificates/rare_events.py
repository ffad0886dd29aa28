"""How likely is a rare event? Its probability under a language model, by a twist that is learned on the way.

The event is that a score reaches a threshold. Plain Monte Carlo needs 1/P draws to see it once. Here a twist is learned
in rounds: draw, find the highest level that enough draws reach, learn to reach it, draw again (the cross-entropy
method: Rubinstein 1999; with the pool of all draws of Cornuet et al. 2012). Fresh draws then give an unbiased estimate,
whatever the twist has failed to see.

Three things keep rare ways to the event from being missed. The twist is switched on and off at random
(`twistlm.sampling.switching`), so that a text may begin or go on harmlessly. It is fitted for the least variance of the
weights, which a way that few draws took decides. And every round is fitted to lower levels beside the highest one.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.special import ndtri
from torch import Tensor

from twistlm.certificates.bounds import iwae_from_ratios
from twistlm.core.errors import ConfigError
from twistlm.core.estimates import CONFIDENCE, Estimate, mean
from twistlm.core.logmath import ess, normalise
from twistlm.core.progress import bar
from twistlm.core.rng import Rng
from twistlm.core.sizes import RECORD_BYTES, TOKEN_BYTES, check_sizes
from twistlm.potentials.base import check_reachable
from twistlm.potentials.conditions import is_conditional
from twistlm.sampling.mixture import Pool
from twistlm.sampling.ranges import Ranges
from twistlm.sampling.resampling import invert, stratified_points
from twistlm.sampling.samples import Samples
from twistlm.sampling.switching import Switching
from twistlm.sampling.target import Target
from twistlm.twists.updates import step

logger = logging.getLogger("twistlm")

# While learning. Of the fresh draws half are the base model's, which alone limit what the twist has never proposed.
SWITCHING, FRESH = Switching(), Switching(base=0.5)
# A round learns the highest level that it can, and those that are so many times as likely.
MULTIPLES = (4, 16)
# Of learning, in every round; draws of each level in an update.
UPDATES, BATCH, LEARNING_RATE, WEIGHT_DECAY = 80, 128, 1e-2, 0.1
# Fresh draws at a time.
CHUNK = 8192
# Particles of the upper bound.
PARTICLES = 64


@dataclass(frozen=True)
class Search:
    """How hard to look.

    Attributes:
        num_draws: sequences of every round; what is still unseen after all rounds is what an interval can miss.
        max_rounds: for each threshold; one is enough for an event that it shows often.
        num_samples: fresh sequences of every estimate.
        min_ess: effective draws that a round's highest level needs.
        twist: a registered twist.
        twist_options: its arguments.

    Raises:
        ConfigError: a number is too small.
    """

    num_draws: int = 16_384
    max_rounds: int = 6
    num_samples: int = 65_536
    min_ess: float = 200.0
    twist: str = "lexical"
    twist_options: tuple[tuple[str, Any], ...] = (("rank", 2),)

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_sizes(TOKEN_BYTES, least=64, num_draws=self.num_draws, num_samples=self.num_samples)
        check_sizes(RECORD_BYTES, max_rounds=self.max_rounds)
        if not self.min_ess >= 2:
            raise ConfigError(f"min_ess must be at least 2, not {self.min_ess}")


@dataclass(frozen=True)
class Probability:
    """P[φ ≥ threshold] under p₀.

    Attributes:
        threshold: of φ.
        value: the unbiased estimate, the mean of p₀/q̄ on the event. No p₀/q̄ is above one over the base model's share,
            and its interval rests on that alone: it allows for ways to the event that no draw has taken.
        seen: the same estimate with the interval that the draws have if they have taken every way to the event;
            None if they have taken none.
        self_normalised: the ratio to the mean of all weights, biased by 1/n; no interval of it holds for few events.
        log_upper: upper bound on log P, if two of the base model's fresh draws were events; None otherwise.
        hits: events among the fresh draws.
        num_draws: fresh draws.
        ess: effective number of events among them.
        num_tokens: tokens drawn for it: of all learning so far, that for earlier thresholds included, and fresh ones.
        rounds: of learning for this threshold.
    """

    threshold: float
    value: Estimate
    seen: Estimate | None
    self_normalised: float
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
        """Tokens that plain Monte Carlo would need for an interval as narrow as that of `value`."""
        return plain_tokens(self.value, num_steps)

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "threshold": self.threshold,
            "probability": self.value.as_dict(),
            "seen": None if self.seen is None else self.seen.as_dict(),
            "self_normalised": self.self_normalised,
            "log_upper": None if self.log_upper is None else self.log_upper.as_dict(),
            "hits": self.hits,
            "num_draws": self.num_draws,
            "ess": self.ess,
            "num_tokens": self.num_tokens,
            "rounds": self.rounds,
        }


def probability(
    target: Target,
    thresholds: Sequence[float],
    *,
    search: Search | None = None,
    seed: int = 0,
    report: Callable[[str], None] = logger.info,
) -> list[Probability]:
    """P[φ ≥ threshold] for each threshold, from easy to hard, each starting from the last one's twist.

    Args:
        target: base model, prompt and length; its potential is the score.
        thresholds: of φ; any order.
        search: how hard to look.
        seed: of everything random.
        report: is told of every round.

    Raises:
        ConfigError: the target differs by a condition, a threshold is not above 0 or can never be reached, or
            none is given.
    """
    if not thresholds or not all(0 < threshold < math.inf for threshold in thresholds):
        raise ConfigError(f"thresholds must be above 0, at least one, and finite, not {list(thresholds)}")
    check_reachable("threshold", max(thresholds), target.potential)
    if is_conditional(target.potential):
        raise ConfigError("a target that differs by its condition has no single score; use a target without one")
    climb = _Climb(target, search or Search(), Rng(seed, ("probability",)), report)
    return [climb.reach(threshold) for threshold in sorted(thresholds)]


class _Climb:
    """The pool of all rounds' draws, and the twist as far as it has learned."""

    def __init__(self, target: Target, search: Search, rng: Rng, report: Callable[[str], None] = logger.info) -> None:
        self.target, self.search, self.rng, self.report = target, search, rng, report
        twist = target.build_twist(rng.fork("twist"), search.twist, dict(search.twist_options))
        self.sampler, self.cases = target.sampler(twist), target.cases
        self.module = twist.module
        self._pool: Pool | None = None
        self.least = -math.inf

    @property
    def pool(self) -> Pool:
        """All rounds' draws."""
        assert self._pool is not None, "the first round draws before anything is asked of the pool"
        return self._pool

    def reach(self, threshold: float) -> Probability:
        """Learn to reach the threshold, in every way that the rounds show; then estimate."""
        goal = math.log(threshold)
        for rounds in range(1, self.search.max_rounds + 1):
            with bar(f"round {rounds}: drawing {self.search.num_draws:,} texts", 1):
                self._draw()
            levels = self._levels(goal)
            self.report(
                f"round {rounds}: of {sum(self.pool.counts):,} draws, {self._events(goal):.0f} effective ones reach "
                f"{threshold:g}; learning to reach {', '.join(f'{math.exp(level):.2g}' for level in levels)}"
            )
            self._forget(levels[-1])
            self._learn(levels, rounds)
            if rounds == 1 and levels[0] == goal:
                # An event that one round shows often enough is not rare, or an easier threshold has learned it.
                break
        if levels[0] < goal:
            logger.warning(
                "%d rounds were not enough to learn how φ reaches %g: the interval may miss what was never seen. Raise "
                "num_draws or max_rounds",
                rounds,
                threshold,
            )
        return self._estimate(threshold, rounds)

    def _draw(self) -> None:
        """One round's draws."""
        count = self.search.num_draws
        if self._pool is None:
            self._pool = Pool.begun(self.rng, self.sampler, self.cases, count, SWITCHING)
        else:
            self._pool = self._pool.grown(self.rng, self.sampler, self.cases, count, self.least)

    def _events(self, level: float) -> float:
        """Effective number of draws in the pool that reach the level."""
        log_w = self.pool.final_log_ratio[self.pool.samples.log_phi >= level]
        return float(ess(log_w)) if len(log_w) else 0.0

    def _levels(self, goal: float) -> list[float]:
        """The highest log score, up to the goal, that draws of enough effective number reach, and the likelier ones.

        If they are nowhere enough, the highest is the best draw's.
        """
        order = self.pool.samples.log_phi.argsort(descending=True)
        log_phi, weights = self.pool.samples.log_phi[order], self.pool.final_log_ratio[order].exp()
        mass = weights.cumsum(0)
        enough = (mass.square() / weights.square().cumsum(0) >= self.search.min_ess).nonzero()
        highest = float(log_phi[int(enough[0])]) if len(enough) else -math.inf
        highest = min(goal, highest if math.isfinite(highest) else float(log_phi[0]))
        reached = mass[log_phi >= highest]
        if len(reached) == 0 or not math.isfinite(highest):
            return [highest]
        places = torch.searchsorted(mass, reached[-1] * mass.new_tensor(MULTIPLES))
        likelier = log_phi[places.clamp_max(int(log_phi.isfinite().sum()) - 1)]
        return [highest, *likelier.clamp_max(highest).tolist()]

    def _forget(self, level: float) -> None:
        """Drop draws that have no part in learning, which will hardly look below half of its lowest level again."""
        self.least = max(self.least, level - math.log(2))
        kept = (self.pool.samples.log_phi >= self.least).nonzero().squeeze(-1)
        self._pool = self.pool.select(kept)

    def _learn(self, levels: Sequence[float], number: int) -> None:
        """Fit the twist to the draws that reach the levels: least variance of the weights, as far as they tell.

        The second moment of p₀/q̄ on an event is P times its mean over σ, which the pool's weighted draws estimate. The
        lower levels keep open what has not led to the event yet.
        """
        log_phi, log_w = self.pool.samples.log_phi, self.pool.final_log_ratio
        if not bool(log_phi.isfinite().any()):
            return
        chance = torch.stack([normalise(log_w.masked_fill(log_phi < level, -torch.inf)) for level in levels])
        rng = self.rng.fork("learn", sum(self.pool.counts))
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, UPDATES)
        with bar(f"round {number}: learning", UPDATES) as report:
            for update in range(UPDATES):
                points = stratified_points(rng.fork(update), len(levels), BATCH)
                batch = self.pool.samples.select(invert(chance, points).flatten())
                loss = torch.logsumexp(self._log_ratio(batch).view(len(levels), BATCH), 1).mean()
                step(optimiser, loss, parameters)
                schedule.step()
                report(update + 1, "")

    def _log_ratio(self, batch: Samples) -> Tensor:
        """log p₀ − log q̄ of whole sequences [n], with gradient."""
        scores = self.sampler.model.score(batch, normaliser=True)
        assert scores.log_normaliser is not None
        log_q = batch.log_p + (scores.log_psi - scores.log_normaliser).double() * batch.mask
        return batch.log_p.sum(-1) - SWITCHING.log_q(batch.log_p, log_q)[:, -1]

    def _estimate(self, threshold: float, rounds: int) -> Probability:
        """From fresh draws, which have taught the proposal nothing."""
        rng, total = self.rng.fork("fresh", f"{threshold:g}"), self.search.num_samples
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        with bar(f"estimating P[φ ≥ {threshold:g}]", total) as report:
            for at in range(0, total, CHUNK):
                fresh = Pool.begun(rng.fork(at), self.sampler, self.cases, min(CHUNK, total - at), FRESH)
                parts.append((fresh.samples.log_phi >= math.log(threshold), fresh.final_log_ratio, fresh.unsteered))
                report(min(at + CHUNK, total), "")
        event, log_w, unsteered = (torch.cat(part) for part in zip(*parts, strict=True))
        weights = log_w.exp()
        # The bound from above needs exact samples: the base model's own events.
        reached, exact, upper = torch.where(event, log_w, -torch.inf), log_w[unsteered & event], None
        if len(exact) >= 2 and total >= PARTICLES:
            upper = iwae_from_ratios(reached, exact, PARTICLES, Ranges(high=0.0)).upper
        weighted = weights * event
        return Probability(
            threshold=threshold,
            value=mean(weighted, low=0.0, high=1 / FRESH.base).clipped(most=1.0),
            seen=mean(weighted, low=0.0, high=float(weighted.max())).clipped(most=1.0) if bool(event.any()) else None,
            self_normalised=float(weighted.sum() / weights.sum()),
            log_upper=upper,
            hits=int(event.sum()),
            num_draws=total,
            ess=float(ess(reached)),
            num_tokens=(sum(self.pool.counts) + total) * self.target.num_tokens,
            rounds=rounds,
        )


def plain_tokens(estimate: Estimate, num_steps: int) -> float:
    """Tokens that counting events among base draws of `num_steps` tokens would need for an interval as narrow."""
    p, half = estimate.value, estimate.half_width
    return float(ndtri(0.5 + CONFIDENCE / 2)) ** 2 * p * (1 - p) / half**2 * num_steps if half > 0 else math.inf
