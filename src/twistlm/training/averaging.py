"""The running mean of parameters, which is judged and kept in their place: the noise of single batches averages out.

Polyak averaging with exponential weights; at first all steps count alike, so that the start is soon forgotten. Where
every step has fresh draws at a constant rate, it does what lowering the rate towards the end would, without knowing
where the end is (docs/log.md, 2026-11-27, evening).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

# After n steps at most (1 + n) / (10 + n) of the mean stays what it was.
SOON = 10


class Average:
    """The mean of parameters over about the last 1 / (1 − rate) steps.

    Args:
        parameters: those that training changes.
        rate: how much of the mean each step leaves, in [0, 1); 0 for no mean at all.
    """

    def __init__(self, parameters: Sequence[Tensor], rate: float) -> None:
        # Without a rate it is a mean of nothing, and all below does nothing.
        self.parameters, self.rate = parameters if rate else (), rate
        self.count, self.mean = 0, self._now()

    @torch.no_grad()
    def update(self) -> None:
        """Count the parameters as they are in."""
        kept = min(self.rate, (1 + self.count) / (SOON + self.count))
        self.count += 1
        for mean, p in zip(self.mean, self.parameters, strict=True):
            mean.lerp_(p, 1 - kept)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The mean in the parameters' place, as long as this is open."""
        now = self._now()
        self._put(self.mean)
        try:
            yield
        finally:
            self._put(now)

    def _now(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        for p, value in zip(self.parameters, values, strict=True):
            p.copy_(value)

    @property
    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of it; nothing if there is no mean."""
        if not self.parameters:
            return {}
        return {"count": torch.tensor(self.count)} | {str(k): mean for k, mean in enumerate(self.mean)}

    @state.setter
    def state(self, saved: dict[str, Tensor]) -> None:
        if self.parameters:
            self.count = int(saved["count"])
            self.mean = [saved[str(k)].to(mean) for k, mean in enumerate(self.mean)]
