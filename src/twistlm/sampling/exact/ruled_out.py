"""What visited prefixes have ruled out: exact samples under a hard constraint, and a bound on Z that no sample makes.

With U an upper bound on the mean of φ / sup φ over a prefix's completions (`sampling.explored`) and q ∝ p₀U, no
p₀φ / (q sup φ) is above U of the empty prefix, whatever is drawn, and a draw accepted with the ratio of the two as its
probability is an exact sample. Every draw, accepted or not, brings U of the empty prefix nearer to Z / sup φ. (Adaptive
rejection sampling under constraints: CARS, arXiv:2510.01902.)
"""

import torch

from twistlm.sampling.cases import Cases
from twistlm.sampling.exact.budget import WAVE
from twistlm.sampling.exact.collection import Collection
from twistlm.sampling.explored import Explored, precision
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.samples import Samples


def next_look(number: int) -> int:
    """The chunk before which draws are learned from next, after `number` of them: 1, 2, 4, 8, 16, 32, 48, …

    Never in the middle of what as many workers as there may be do at once: within a wave only at the very beginning.
    """
    return 1 << number.bit_length() if number < WAVE else (number // WAVE + 1) * WAVE


class Learner:
    """What a collection in progress has ruled out: the same after an interruption, and by any number of workers.

    Attributes:
        chunks: the draws so far, chunk by chunk.
    """

    def __init__(self, sampler: Sampler, cases: Cases, log_sup_phi: float, so_far: Collection | None) -> None:
        model = sampler.model
        assert model.constraint is not None
        dtype = precision(model.lm, cases[0].prompt)
        self.ruled_out, self.log_sup_phi = Explored(model.constraint, dtype, bounds=True), log_sup_phi
        self.cases, self.learned = cases, 0
        self.chunks: list[Samples] = []
        if so_far is not None:
            ends = torch.tensor([stream.count for stream in so_far.streams]).cumsum(0).tolist()
            bare = so_far.draws.bare()
            starts = [0, *ends[:-1]]
            self.chunks += [bare.select(torch.arange(*each)) for each in zip(starts, ends, strict=True)]

    def at(self, number: int) -> Explored:
        """What chunk `number` knows: what the chunks before the last look have shown."""
        while (look := next_look(self.learned)) <= number:
            self._learn(look)
        return self.ruled_out

    def uppers(self) -> dict[tuple[int, ...], float]:
        """log of the bound on Z / sup φ at each prompt, by all draws; nothing can be drawn afterwards."""
        self.at(len(self.chunks))
        if self.learned < len(self.chunks):
            self._learn(len(self.chunks))
        return {tuple(case.prompt.tolist()): self.ruled_out.log_value(case.prompt) for case in self.cases}

    def _learn(self, look: int) -> None:
        self.ruled_out.learn(Samples.concatenate(self.chunks[self.learned : look]), self.log_sup_phi)
        self.learned = look
