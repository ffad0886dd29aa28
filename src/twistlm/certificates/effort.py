"""What looking for a rare event costs: how a round's updates follow its draws, and what all of it will take."""

from dataclasses import dataclass
from typing import Any

from twistlm.core.errors import ConfigError
from twistlm.core.plain import make_plain
from twistlm.core.sizes import RECORD_BYTES, TOKEN_BYTES, check_sizes

# Score levels that a round learns.
LEVELS = 3
# Of a round: updates, and draws of each level in one of them, at most and at least.
MOST_UPDATES, MOST_BATCH = 80, 128
LEAST_UPDATES, LEAST_BATCH = 16, 16
# Sequences that learning scores for each that the round draws, about; many of them are the same, and scored once.
LEARNING = 4
# Draws of each prompt, at least, in a round and for an estimate.
LEAST_DRAWS, LEAST_SAMPLES = 16, 64
# Fresh draws for each of a round, unless it is said how many.
FRESH_PER_DRAW = 4


@dataclass(frozen=True)
class Search:
    """How hard to look.

    Attributes:
        num_draws: sequences of every round, over all prompts (16 for each at least); what is still unseen after all
            rounds is what an interval can miss. What learning costs follows it (`Effort`).
        max_rounds: for each threshold; one is enough for an event that it shows often.
        num_samples: fresh sequences of every estimate, over all prompts (64 for each at least); None for four times
            `num_draws`.
        min_ess: effective draws of a prompt that a round's highest level needs, or an eighth of its draws if that is
            less.
        num_events: texts of the event that are kept for each prompt, at most.
        twist: a registered twist.
        twist_options: its arguments.

    Raises:
        ConfigError: a number is too small.
    """

    num_draws: int = 16_384
    max_rounds: int = 6
    num_samples: int | None = None
    min_ess: float = 16.0
    num_events: int = 10
    twist: str = "lexical"
    twist_options: tuple[tuple[str, Any], ...] = (("rank", 2),)

    def __post_init__(self) -> None:
        """Check the numbers."""
        make_plain(self)
        check_sizes(TOKEN_BYTES, least=64, num_draws=self.num_draws)
        check_sizes(TOKEN_BYTES, least=64, num_samples=self.num_fresh)
        check_sizes(RECORD_BYTES, max_rounds=self.max_rounds)
        check_sizes(RECORD_BYTES, least=0, num_events=self.num_events)
        if not self.min_ess >= 2:
            raise ConfigError(f"min_ess must be at least 2, not {self.min_ess}")

    @property
    def num_fresh(self) -> int:
        """Fresh sequences of every estimate."""
        return FRESH_PER_DRAW * self.num_draws if self.num_samples is None else self.num_samples


@dataclass(frozen=True)
class Effort:
    """What rounds and estimates are made of.

    Attributes:
        num_cases: R prompts.
        each: draws of each prompt in a round.
        samples_each: fresh draws of each prompt for an estimate.
        updates: of a round's learning.
        batch: draws of each level in an update.
    """

    num_cases: int
    each: int
    samples_each: int
    updates: int
    batch: int

    @staticmethod
    def of(search: Search, num_cases: int) -> "Effort":
        """Of a search at so many prompts.

        From 7,680 draws a round on it is 80 updates with 128 draws of each level. With fewer the batch shrinks, then
        the updates: a round that draws little has little to learn.
        """
        each = search.num_draws if num_cases == 1 else max(LEAST_DRAWS, search.num_draws // num_cases)
        fresh = search.num_fresh if num_cases == 1 else max(LEAST_SAMPLES, search.num_fresh // num_cases)
        scored = LEARNING * each * num_cases // LEVELS
        batch = min(max(scored // MOST_UPDATES, LEAST_BATCH), MOST_BATCH)
        updates = min(max(scored // batch, LEAST_UPDATES), MOST_UPDATES)
        return Effort(num_cases, each, fresh, updates, batch)

    @property
    def stride(self) -> float:
        """How much longer a step of learning is than one of `MOST_UPDATES`: few of them go as far as many."""
        return MOST_UPDATES / self.updates
