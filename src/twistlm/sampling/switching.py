"""Proposals that the twist steers only at times: a hidden Markov chain switches it on and off as the tokens go by.

A learned proposal wants the event at once and all along. Sequences that begin harmlessly, or that go on harmlessly once
the event is sure, have to decline what it offers at every other step, and are rarer under it than under p₀ itself. With
the twist on for some stretches only, some share of the draws is steered where a sequence needs it and nowhere else.
Summed over all 2^T patterns b of on and off, ::

    q̄(s_1:t) = Σ_b P(b) Π_u (b_u ? q : p₀)(s_u | s_<u),

which the forward algorithm does in O(T). With a share of draws from p₀ throughout, p₀/q̄ is bounded by one over it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from twistlm.core.rng import Rng


@dataclass(frozen=True)
class Switching:
    """The chain.

    Attributes:
        base: share of sequences for which the twist stays off throughout.
        first: probability that it is on at the first token of the others.
        on: that it is switched on before a token, if it was off.
        off: that it is switched off, if it was on.
    """

    base: float = 0.05
    first: float = 0.2
    on: float = 0.1
    off: float = 0.3

    def draw(self, rng: Rng, count: int, num_steps: int) -> Tensor:
        """Where the twist is off [count, T]."""
        uniforms = rng.uniform((count, num_steps))
        steered = rng.uniform((count, 1)) >= self.base
        states = [uniforms[:, 0] < self.first]
        for u in uniforms[:, 1:].unbind(-1):
            states.append(torch.where(states[-1], u >= self.off, u < self.on))
        return ~(torch.stack(states, -1) & steered)

    def log_q(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """log q̄(s_1:t) [n, T] from log p₀ and log q of every token [n, T]; with gradient."""
        base, first, on, off = torch.tensor([self.base, self.first, self.on, self.off], dtype=log_p.dtype).unbind()
        off_now, on_now = ((1 - base) * (1 - first)).log(), ((1 - base) * first).log()
        throughout, by_length = base.log(), list[Tensor]()
        for p, q in zip(log_p.unbind(-1), log_q.unbind(-1), strict=True):
            if by_length:
                off_now, on_now = (
                    torch.logaddexp(off_now + (1 - on).log(), on_now + off.log()),
                    torch.logaddexp(off_now + on.log(), on_now + (1 - off).log()),
                )
            throughout, off_now, on_now = throughout + p, off_now + p, on_now + q
            by_length.append(torch.logaddexp(torch.logaddexp(off_now, on_now), throughout))
        return torch.stack(by_length, -1)
