"""What a search will take, said before it is spent: sequences by its settings, seconds by timing a few of them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from twistlm.certificates.effort import LEVELS
from twistlm.certificates.probability import spelled
from twistlm.sampling.mixture import Pool
from twistlm.sampling.switching import Switching

if TYPE_CHECKING:
    from twistlm.certificates.rare_events import Climb

T = TypeVar("T")

# Draws that are timed, after a few that make everything ready; and how many of them are learned from.
TIMED, FIRST, LEARNED = 64, 8, 16


@dataclass(frozen=True)
class Price:
    """At most so much; an event that one round shows often enough takes a single round.

    Attributes:
        rounds: of learning that are left, over all thresholds.
        num_draws: sequences of a round.
        num_fresh: fresh sequences of all estimates.
        num_tokens: new tokens of all of them.
        seconds: by the speed of a few small batches; large ones are faster.
    """

    rounds: int
    num_draws: int
    num_fresh: int
    num_tokens: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"price: at most {self.rounds} rounds of {self.num_draws:,} draws and {self.num_fresh:,} fresh draws: "
            f"{self.num_tokens:,} tokens, about {lasting(self.seconds)} for all of them by the speed of {TIMED} draws"
        )


def price(climb: "Climb", thresholds: Sequence[float]) -> Price:
    """Of what is left to be done for the thresholds."""
    search, effort = climb.search, climb.effort
    begun = [climb.done.get(spelled(threshold), (0, 0, False)) for threshold in thresholds]
    left = sum(0 if complete else search.max_rounds - rounds for rounds, _, complete in begun)
    before = sum(rounds for rounds, _, _ in begun)
    num_draws, num_fresh = effort.each * effort.num_cases, effort.samples_each * effort.num_cases * len(thresholds)
    rng, cases = climb.rng.fork("timing"), climb.cases[:1]
    Pool.begun(rng, climb.sampler, cases, FIRST, Switching())
    drawing, drawn = _timed(lambda: Pool.begun(rng, climb.sampler, cases, TIMED, Switching()))
    weighing, _ = _timed(lambda: climb.sampler.densities(drawn.samples))
    batch = drawn.samples.select(torch.arange(LEARNED))
    learning, _ = _timed(lambda: climb.log_ratio(batch).sum().backward())
    # Every round's draws are weighed under each twist before, and what was kept of them under the new one.
    weighed = sum(range(before, before + left)) * num_draws
    learned = left * effort.updates * min(LEVELS * effort.batch, num_draws)
    return Price(
        rounds=left,
        num_draws=num_draws,
        num_fresh=num_fresh,
        num_tokens=(left * num_draws + num_fresh) * climb.target.num_tokens,
        seconds=((left * num_draws + num_fresh) * drawing + weighed * weighing) / TIMED + learned * learning / LEARNED,
    )


def lasting(seconds: float) -> str:
    """A time in words: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    begun = time.monotonic()
    done = work()
    return time.monotonic() - begun, done
