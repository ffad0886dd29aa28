"""Probabilities of an event: at each prompt of a set, over all of them, and which prompts are worse than which.

Intervals of single prompts hold one by one. Those of a ranking hold all at once (Bonferroni: each at 1 − 0.05 / R), so
that with R prompts, too, one is called worse than another by mistake in one set of twenty at most.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from annotated_types import Ge, Interval
from pydantic import AfterValidator, Field
from scipy.special import ndtri
from torch import Tensor

from twistlm.certificates.events import Event
from twistlm.core.estimates import CONFIDENCE, Estimate, mean
from twistlm.core.storage import STRICT


def _within(low: float, high: float, found: Estimate) -> Estimate:
    ends = (found.low, found.value, found.high)
    if not all(low <= each <= high or (high > 1 and math.isinf(each)) for each in ends) or found.high == 0:
        raise ValueError(f"its ends should be from {low:g} to {high:g}")
    return found


# Beyond ±700 a number has no logarithm that is one, but for infinity.
Chance = Annotated[Estimate, AfterValidator(partial(_within, 0.0, 1.0))]
LogChance = Annotated[Estimate, AfterValidator(partial(_within, -700.0, 700.0))]
Events = Annotated[tuple[Event, ...], Field(exclude=True)]


def spelled(threshold: float) -> str:
    """A threshold as a name that no other has: short where six digits are all of it, else with all that it has."""
    short = f"{threshold:g}"
    return short if float(short) == threshold else repr(threshold)


@dataclass(frozen=True)
class PromptProbability:
    """P[φ ≥ threshold] at one prompt.

    Attributes:
        name: of the prompt.
        share: its weight in the set; all sum to 1.
        value: the unbiased estimate, with an interval that allows for ways to the event that no draw has taken.
        seen: the same with the interval that the draws have if they have taken every way; None if they took none.
        simultaneous: `value` with an interval that holds for all prompts of the set at once.
        hits: events among the fresh draws.
        num_draws: fresh draws at this prompt.
        events: some of them, as weighted samples of p₀ given the event.
    """

    __pydantic_config__ = STRICT

    name: str
    share: Annotated[float, Interval(ge=0, le=1)]
    value: Annotated[Chance, Field(alias="probability")]
    seen: Chance | None
    simultaneous: Chance
    hits: int
    num_draws: int
    events: Events = ()


@dataclass(frozen=True)
class Place:
    """Where a prompt stands in a ranking.

    Attributes:
        found: what is known of it.
        best, worst: the places that it may have, from 1: so many are surely above it, and surely below.
    """

    found: PromptProbability
    best: int
    worst: int

    @property
    def is_known(self) -> bool:
        """Whether it is the only place that it may have."""
        return self.best == self.worst


@dataclass(frozen=True)
class Probability:
    """P[φ ≥ threshold] under p₀, over a set of prompts (which may be a single one).

    Attributes:
        threshold: of φ.
        value: the unbiased estimate, the mean of p₀/q̄ on the event, over prompts by their shares. No p₀/q̄ is above
            one over the base model's share, and its interval rests on that alone: it allows for ways to the event that
            no draw has taken.
        seen: the same estimate with the interval that the draws have if they have taken every way to the event;
            None if they have taken none.
        self_normalised: the ratio to the mean of all weights, biased by 1/n; no interval of it holds for few events.
        log_upper: upper bound on log P, if there is one prompt and two of the base model's fresh draws were events;
            None otherwise.
        hits: events among the fresh draws.
        num_draws: fresh draws.
        ess: effective number of events among them.
        num_tokens: tokens drawn for it: of all learning so far, that for earlier thresholds included, and fresh ones.
        rounds: of learning for this threshold.
        by_prompt: what was found at each prompt, in the order of the set.
    """

    __pydantic_config__ = STRICT

    threshold: float
    value: Annotated[Chance, Field(alias="probability")]
    seen: Chance | None
    self_normalised: float
    log_upper: LogChance | None
    hits: int
    num_draws: int
    ess: float
    num_tokens: Annotated[int, Ge(1)]
    rounds: int
    by_prompt: tuple[PromptProbability, ...] = ()

    @property
    def log10(self) -> tuple[float, float, float]:
        """log₁₀ of the estimate and of its interval's ends; −inf for 0."""
        value, low, high = (
            math.log10(x) if x > 0 else -math.inf for x in (self.value.value, self.value.low, self.value.high)
        )
        return value, low, high

    @property
    def headline(self) -> str:
        """What it says in words: "1 in 2,100 answers (1 in 1,900 to 1 in 2,400)"."""
        return one_in(self.value)

    def plain_tokens(self, num_steps: int) -> float:
        """Tokens that plain Monte Carlo would need for an interval as narrow as that of `value`."""
        return plain_tokens(self.value, num_steps)

    def ranked(self) -> list[Place]:
        """The prompts, the likeliest first, each with the places that it may have.

        One is surely above another where their simultaneous intervals do not meet; all such statements hold together
        at 95 %.
        """

        def height(each: PromptProbability) -> tuple[float, float]:
            return each.value.value, each.value.high

        ordered = sorted(self.by_prompt, key=height, reverse=True)
        ends = [each.simultaneous for each in ordered]
        return [
            Place(
                each,
                best=1 + sum(other.low > mine.high for other in ends),
                worst=len(ends) - sum(other.high < mine.low for other in ends),
            )
            for each, mine in zip(ordered, ends, strict=True)
        ]


def chance(weights: Tensor, highest: float, level: float = CONFIDENCE, most: float = 1.0) -> Estimate:
    """A probability: the mean of weights p₀/q̄ on the event, none of which exceeds `highest`; itself at most `most`."""
    return mean(weights, low=0.0, high=highest, level=level).clipped(most=most)


def seen(weights: Tensor, most: float = 1.0) -> Estimate | None:
    """The same with what was seen for all there is; None if that is nothing."""
    return chance(weights, float(weights.max()), most=most) if bool((weights > 0).any()) else None


def plain_tokens(estimate: Estimate, num_steps: int) -> float:
    """Tokens that counting events among base draws of `num_steps` tokens would need for an interval as narrow."""
    p, half = estimate.value, estimate.half_width
    return float(ndtri(0.5 + CONFIDENCE / 2)) ** 2 * p * (1 - p) / half**2 * num_steps if half > 0 else math.inf


def one_in(chance: Estimate) -> str:
    """A probability as "1 in N answers", with its interval."""
    if chance.value == 0:
        return f"fewer than {_one_in(chance.high)} answers"
    least = _one_in(chance.low) if chance.low > 0 else "fewer"
    return f"{_one_in(chance.value)} answers ({_one_in(chance.high)} to {least})"


def _one_in(chance: float) -> str:
    """Three digits, as whole numbers where they are large: "1 in 2,150", "1 in 1.6", and "1 in 7.69e+34"."""
    number = 1 / chance
    if number < 10:
        return f"1 in {number:.2g}"
    if number >= 1e12:
        return f"1 in {number:.2e}"
    digits = max(0, math.floor(math.log10(number)) - 2)
    return f"1 in {round(number, -digits):,.0f}"
