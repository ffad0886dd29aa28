"""An Rng that takes every random path, so that an expectation over SMC is a finite sum without Monte Carlo noise."""

import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from twistlm.core.kernels.categorical import CategoricalTable
from twistlm.core.rng import Rng

T = TypeVar("T")


class ExhaustiveRng(Rng):
    """Follows a script of outcomes, then takes the first possible one; records every choice it was offered."""

    def __init__(self, script: Sequence[int] = ()) -> None:
        super().__init__(0)
        self.script = list(script)
        self.choices: list[tuple[int, list[float]]] = []

    @property
    def probability(self) -> float:
        """Probability of the path taken so far."""
        total = 1.0
        for outcome, probabilities in self.choices:
            total *= probabilities[outcome]
        return total

    def fork(self, *names: str | int) -> "ExhaustiveRng":
        """Itself: all streams are one path."""
        return self

    def uniform(self, shape: Sequence[int], breaks: Tensor | None = None) -> Tensor:
        """The midpoint of one of the intervals that `breaks` [R, k] cut from [0, 1), for each entry of [R, n]."""
        if breaks is None:
            raise AssertionError("an exhaustive Rng can only integrate a uniform whose breaks are given")
        values = torch.empty(tuple(shape), dtype=torch.float64)
        for row in range(shape[0]):
            cuts = sorted({0.0, 1.0, *(float(cut) for cut in breaks[row] if 0.0 < cut < 1.0)})
            widths = [high - low for low, high in itertools.pairwise(cuts)]
            for column in range(shape[1]):
                k = self._choose(widths)
                values[row, column] = (cuts[k] + cuts[k + 1]) / 2
        return values

    def categorical(self, table: CategoricalTable, rows: Tensor) -> Tensor:
        """One outcome of each distribution, by script; the first where nothing is possible, as of a dead particle."""
        probabilities = [table.probabilities()[row].tolist() for row in rows.tolist()]
        return torch.tensor([self._choose(each) if _possible(each) else 0 for each in probabilities], dtype=torch.long)

    def _choose(self, probabilities: list[float]) -> int:
        at = len(self.choices)
        outcome = self.script[at] if at < len(self.script) else _possible(probabilities)[0]
        self.choices.append((outcome, probabilities))
        return outcome


def _possible(probabilities: list[float]) -> list[int]:
    return [k for k, p in enumerate(probabilities) if p > 1e-15]


def enumerate_paths(function: Callable[[Rng], T]) -> list[tuple[float, T]]:
    """Run `function` once for every random path; returns (probability, result) pairs whose probabilities sum to 1."""
    results: list[tuple[float, T]] = []
    script: list[int] | None = []
    while script is not None:
        rng = ExhaustiveRng(script)
        result = function(rng)
        results.append((rng.probability, result))
        script = _successor(rng.choices)
    return results


def _successor(choices: list[tuple[int, list[float]]]) -> list[int] | None:
    for at in reversed(range(len(choices))):
        outcome, probabilities = choices[at]
        later = [k for k in range(outcome + 1, len(probabilities)) if probabilities[k] > 1e-15]
        if later:
            return [taken for taken, _ in choices[:at]] + [later[0]]
    return None
