"""What log Z is: one decision for certificates, runs and sweeps, from all the evidence that there is.

A witness brings independent estimates Ẑ ≥ 0 with E[Ẑ] = Z: φ of base draws, weights p₀φ/q of the proposal's samples,
runs of SMC. What their mean is at least limits Z from below, whatever the weights may be; what it is at most limits Z
from above if they have a bound, as φ has. With an exact sample among its particles E[1/Ẑ] = 1/Z holds instead (Zhao et
al. 2024, section 5.2), so that what the mean of 1/Ẑ is at least limits Z from above without any bound. Either side
takes the best of its limits, each at a level that leaves all of them together the stated one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from twistlm.core.estimates import ALARM, CONFIDENCE, Estimate, mean, midpoint, plain, pooled
from twistlm.core.limits import Array, log_lower_limit, log_upper_limit
from twistlm.core.logmath import log_mean_exp

# Limits that differ by less do so by rounding.
ROUNDING = 1e-9


class Source(StrEnum):
    """Where a log Z comes from."""

    DRAWS = "base draws"
    WEIGHTS = "importance weights"
    SMC = "SMC"
    CONDITIONS = "main sandwich, mean over conditions"
    PROMPTS = "sandwiches, mean over prompts"
    BELOW = "lower bound only"


@dataclass(frozen=True)
class Witness:
    """Evidence of log Z from one source.

    Attributes:
        source: its name.
        below: log of independent estimates with mean Z [n].
        above: log of independent estimates the mean of whose inverse is 1/Z [m]; None without exact samples.
        most: log of what no estimate in `below` can exceed; None if that is not known.
    """

    source: Source
    below: Tensor
    above: Tensor | None = None
    most: float | None = None

    @property
    def value(self) -> float:
        """log of the mean of its estimates."""
        return float(log_mean_exp(self.below.flatten()))

    @property
    def ways(self) -> int:
        """How many limits from above there are."""
        return (self.most is not None) + (self.above is not None)

    def lower(self, tail: float) -> float:
        """What log Z is below with probability `tail` at most."""
        return log_lower_limit(_numbers(self.below), tail)

    def uppers(self, tail: float) -> list[float]:
        """What log Z is above with probability `tail` at most, by each way that there is."""
        limits = []
        if self.most is not None:
            limits.append(log_upper_limit(_numbers(self.below), max(self.most, float(self.below.max())), tail))
        if self.above is not None:
            limits.append(-log_lower_limit(-_numbers(self.above), tail))
        return limits


def _numbers(values: Tensor) -> Array:
    return values.double().flatten().cpu().numpy()


@dataclass(frozen=True)
class Decision:
    """log Z with its interval, where its value comes from, and what contradicts it ("" if nothing does)."""

    log_Z: Estimate
    source: Source
    alarm: str = ""


@dataclass(frozen=True)
class _Limits:
    """Every witness's own limits at one level, and what log Z can be at least and at most by definition."""

    witnesses: Sequence[Witness]
    lows: list[float]
    highs: list[float]
    least: float
    most: float

    @staticmethod
    def of(witnesses: Sequence[Witness], least: float, most: float, level: float) -> "_Limits":
        tail = (1.0 - level) / 2
        ways = sum(each.ways for each in witnesses)
        return _Limits(
            witnesses,
            [each.lower(tail / len(witnesses)) for each in witnesses],
            [min(each.uppers(tail / max(1, ways)), default=math.inf) for each in witnesses],
            least,
            most,
        )

    @property
    def low(self) -> float:
        return max(self.lows)

    @property
    def high(self) -> float:
        return min(self.highs)

    @property
    def sharpest(self) -> Witness:
        """The witness whose own mean is nearest to its lower limit: not every witness has a limit from above.

        One whose mean the others exclude is not taken, unless all are: its mean is poor, and near its limit by chance.
        """
        low, high = sorted((self.low, self.high))
        away = [
            (not low <= each.value <= high, each.value - least if math.isfinite(least) else math.inf)
            for each, least in zip(self.witnesses, self.lows, strict=True)
        ]
        return self.witnesses[away.index(min(away))]

    def contradiction(self) -> str:
        """Which two witnesses exclude each other, or which one what is certain; "" if none does."""
        lowest = f"{self.witnesses[self.lows.index(self.low)].source} say that log Z is at least {plain(self.low)}"
        highest = f"{self.witnesses[self.highs.index(self.high)].source} say that log Z is at most {plain(self.high)}"
        if self.low > self.high:
            return f"{lowest}, and {highest}"
        if self.low > self.most + ROUNDING:
            return f"{lowest}, and it is at most {plain(self.most)} for certain"
        if self.high < self.least - ROUNDING:
            return f"{highest}, and it is at least {plain(self.least)} for certain"
        return ""


def decide(
    witnesses: Sequence[Witness], least: float | None = None, most: float | None = None, level: float = CONFIDENCE
) -> Decision:
    """log Z by all witnesses, between what it can be at least and at most (None if that is not known).

    Limits that cross at the stated level are taken at `estimates.ALARM` instead; if they cross there too, one of the
    sources is not what it is said to be, and the decision says so.
    """
    ends = -math.inf if least is None else least, math.inf if most is None else most
    limits = _Limits.of(witnesses, *ends, level)
    if alarm := limits.contradiction():
        limits = _Limits.of(witnesses, *ends, ALARM)
        alarm = limits.contradiction()
    best = limits.sharpest
    low, high = sorted((limits.low, limits.high))
    log_Z = Estimate(best.value, low, high, best.below.numel()).clipped(low, high).clipped(*ends)
    return Decision(log_Z, Source.BELOW if math.isinf(high) else best.source, alarm)


def over_conditions(lowers: Tensor, uppers: Tensor) -> Decision:
    """log Z where targets differ: its mean over conditions, by the runs of a sandwich with a condition each [runs]."""
    return Decision(midpoint(mean(lowers), mean(uppers)), Source.CONDITIONS)


def over_runs(estimates: Sequence[Estimate]) -> Estimate | None:
    """log Z by the certificates of several runs that share a target, and evidence: weighted by precision."""
    return pooled(estimates) if estimates else None


def of_draws(log_phi: Tensor, most: float | None) -> Witness:
    """φ of base draws [n], which has the bound exp(most)."""
    return Witness(Source.DRAWS, log_phi, None, most)


def of_weights(drawn: Tensor, exact: Tensor | None, most: float | None) -> Witness:
    """log p₀φ/q of the proposal's samples [n] and of exact ones [m]; `most` bounds the former if q = p₀.

    Every exact sample is joined by an equal share of the proposal's.
    """
    above = None
    if exact is not None and exact.numel():
        others = drawn.numel() // exact.numel()
        rest = drawn[: others * exact.numel()].view(exact.numel(), others)
        above = log_mean_exp(torch.cat([exact.view(-1, 1), rest], 1))
    return Witness(Source.WEIGHTS, drawn, above, most)
