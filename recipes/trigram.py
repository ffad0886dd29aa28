"""An interpolated trigram model of tokens: what a text looks like that knows two words of context and no more."""

from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate

from twistlm.core.rng import Rng

# Weights of trigram, bigram and unigram.
WEIGHTS = (0.7, 0.25, 0.05)


class Trigram:
    """Counts of up to three tokens in a row."""

    def __init__(self, texts: Iterable[Sequence[int]]) -> None:
        self.counts: tuple[defaultdict[tuple[int, ...], Counter[int]], ...] = tuple(
            defaultdict(Counter) for _ in WEIGHTS
        )
        for text in texts:
            for at, token in enumerate(text):
                for order, table in zip((2, 1, 0), self.counts, strict=True):
                    if at >= order:
                        table[tuple(text[at - order : at])][token] += 1

    def sample(self, rng: Rng, start: Sequence[int], length: int) -> list[int]:
        """`start` and `length` more tokens."""
        tokens = list(start)
        uniforms = rng.uniform((length, 2)).tolist()
        for which, where in uniforms:
            order = 2 if which < WEIGHTS[0] else 1 if which < WEIGHTS[0] + WEIGHTS[1] else 0
            while not (following := self.counts[2 - order].get(tuple(tokens[len(tokens) - order :]))):
                order -= 1
            tokens.append(_at(following, where))
        return tokens


def _at(counts: Counter[int], where: float) -> int:
    tokens = list(counts)
    cumulative = list(accumulate(counts.values()))
    return tokens[min(bisect(cumulative, where * cumulative[-1]), len(tokens) - 1)]
