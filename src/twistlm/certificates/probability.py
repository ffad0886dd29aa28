"""Probabilities of an event: at each prompt of a set, over all of them, and which prompts are worse than which.

Intervals of single prompts hold one by one. Those of a ranking hold all at once (Bonferroni: each at 1 − 0.05 / R), so
that with R prompts, too, one is called worse than another by mistake in one set of twenty at most.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.special import ndtri
from torch import Tensor

from twistlm.certificates.events import Event
from twistlm.core.estimates import CONFIDENCE, Estimate, mean


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

    name: str
    share: float
    value: Estimate
    seen: Estimate | None
    simultaneous: Estimate
    hits: int
    num_draws: int
    events: tuple[Event, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON values; the events are a matter of their own."""
        return {
            "name": self.name,
            "share": self.share,
            "probability": self.value.as_dict(),
            "seen": None if self.seen is None else self.seen.as_dict(),
            "simultaneous": self.simultaneous.as_dict(),
            "hits": self.hits,
            "num_draws": self.num_draws,
        }

    @staticmethod
    def from_dict(fields: Mapping[str, Any], events: Sequence[Event] = ()) -> "PromptProbability":
        """The inverse of `as_dict`."""
        return PromptProbability(
            name=fields["name"],
            share=fields["share"],
            value=Estimate.from_dict(fields["probability"]),
            seen=None if fields["seen"] is None else Estimate.from_dict(fields["seen"]),
            simultaneous=Estimate.from_dict(fields["simultaneous"]),
            hits=fields["hits"],
            num_draws=fields["num_draws"],
            events=tuple(events),
        )


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

    def as_dict(self) -> dict[str, Any]:
        """JSON values; the events are a matter of their own."""
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
            "by_prompt": [each.as_dict() for each in self.by_prompt],
        }

    @staticmethod
    def from_dict(fields: Mapping[str, Any], events: Mapping[str, Sequence[Event]]) -> "Probability":
        """The inverse of `as_dict`; `events` by the name of their prompt."""
        numbers = ("threshold", "self_normalised", "hits", "num_draws", "ess", "num_tokens", "rounds")
        return Probability(
            value=Estimate.from_dict(fields["probability"]),
            seen=None if fields["seen"] is None else Estimate.from_dict(fields["seen"]),
            log_upper=None if fields["log_upper"] is None else Estimate.from_dict(fields["log_upper"]),
            by_prompt=tuple(
                PromptProbability.from_dict(each, events.get(each["name"], ())) for each in fields["by_prompt"]
            ),
            **{name: fields[name] for name in numbers},
        )


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
