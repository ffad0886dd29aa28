"""How many draws there are to be, and of which prompts.

Draws come in chunks. Of one prompt all chunks are alike. Of a set of prompts each chunk is shared by several: by all in
turn until half of the budget is spent, then by those that lack exact samples most. A wave of `WAVE` chunks is planned
at once, by what was accepted before it, so that its chunks can be drawn at the same time, and by however many workers:
which prompts come next depends on what has been drawn alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from twistlm.sampling.cases import Cases, rows_of
from twistlm.sampling.exact.collection import Collection

# Draws of one prompt at a time, where there are several.
EACH = 16
# No prompt gets more than so many times an even share of the draws: one whose φ is never met must not take them all.
MOST_SHARES = 4
# Chunks of a set of prompts that are planned at once.
WAVE = 16


@dataclass(frozen=True)
class Budget:
    """How much to draw.

    Attributes:
        max_draws: at most so many, rounded up to whole chunks.
        num_samples: stop once so many are accepted of every prompt; None draws `max_draws` in any case.
        chunk: sequences drawn at a time.
    """

    max_draws: int
    num_samples: int | None = None
    chunk: int = 512

    def is_spent(self, counts: "Counts") -> bool:
        """Whether so much is enough."""
        return counts.num_draws >= self.max_draws or self.has_enough(min(counts.accepted))

    def has_enough(self, accepted: float) -> bool:
        """Whether a prompt needs no more exact samples than that."""
        return self.num_samples is not None and accepted >= self.num_samples


@dataclass(frozen=True)
class Counts:
    """What has been drawn so far: draws and accepted ones of each case."""

    drawn: tuple[int, ...]
    accepted: tuple[float, ...]

    def plus(self, part: Collection, cases: Cases) -> "Counts":
        """With a further part of a collection of these cases."""
        rows = rows_of(part.draws.prompts, cases)
        return Counts(
            tuple(count + len(index) for count, index in zip(self.drawn, rows, strict=True)),
            tuple(count + int(part.accepted[index].sum()) for count, index in zip(self.accepted, rows, strict=True)),
        )

    @staticmethod
    def of(cases: Cases, whole: Collection | None, num_chunks: int | None = None) -> "Counts":
        """Those of a collection, or of its first chunks; all 0 where there is none."""
        none = Counts((0,) * len(cases), (0,) * len(cases))
        if whole is None:
            return none
        if num_chunks is None:
            return none.plus(whole, cases)
        first = torch.arange(sum(stream.count for stream in whole.streams[:num_chunks]))
        return none.plus(replace(whole, draws=whole.draws.bare().select(first), accepted=whole.accepted[first]), cases)

    def planned(self, chunk: "Chunk") -> "Counts":
        """With the draws of a chunk that is still to be drawn, and as many accepted as are to be expected."""
        drawn, accepted = list(self.drawn), list(self.accepted)
        for r in chunk.rows:
            accepted[r] += chunk.each * accepted[r] / max(1, drawn[r])
            drawn[r] += chunk.each
        return Counts(tuple(drawn), tuple(accepted))

    @property
    def num_draws(self) -> int:
        """Of all cases."""
        return sum(self.drawn)

    @property
    def num_accepted(self) -> int:
        """Of all cases."""
        return int(sum(self.accepted))

    def neediest(self, budget: Budget, size: int) -> list[int]:
        """The `size` cases that the next chunk is for."""
        even = budget.max_draws / len(self.drawn)

        def need(r: int) -> tuple[bool, bool, float, int]:
            drawn, accepted = self.drawn[r], self.accepted[r]
            behind = drawn < even / 2
            done = budget.has_enough(accepted) or drawn >= MOST_SHARES * even
            return not behind, done, drawn if behind else accepted, drawn

        return sorted(sorted(range(len(self.drawn)), key=need)[:size])


@dataclass(frozen=True)
class Chunk:
    """Draws of some of the cases, `each` of every one."""

    rows: tuple[int, ...]
    each: int


@dataclass(frozen=True)
class Plan:
    """Which chunks a budget is spent on: `size` cases in each, `each` draws of every one."""

    budget: Budget
    size: int
    each: int

    @staticmethod
    def of(budget: Budget, num_cases: int) -> "Plan":
        """That for so many cases."""
        # Half of the cases at most, so that the needier half can be told from the other.
        turn = max(1, min(EACH, budget.max_draws // (2 * num_cases)))
        size = min((num_cases + 1) // 2, max(1, budget.chunk // turn))
        each = budget.chunk // size
        if num_cases > 1:
            # A budget that is smaller than two chunks must reach every prompt, too.
            each = max(1, min(each, budget.max_draws // (2 * num_cases)))
        return Plan(budget, size, each)

    def wave(self, before: Counts, number: int) -> Iterator[Chunk]:
        """The chunks from `number` on that are planned by what there was `before` their wave."""
        several = len(before.drawn) > 1
        skipped, made = number % WAVE if several else 0, 0
        while before.num_draws < self.budget.max_draws and (made < WAVE or not several):
            chunk = Chunk(tuple(before.neediest(self.budget, self.size)), self.each)
            if made >= skipped:
                yield chunk
            before, made = before.planned(chunk), made + 1

    def before(self, cases: Cases, so_far: Collection, number: int) -> Counts:
        """What there was before the wave of chunk `number`."""
        return Counts.of(cases, so_far, number // WAVE * WAVE if len(cases) > 1 else None)
