"""A sampler that several processes use together, each in the same way: all have the same sequences afterwards."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from typing import Any, TypeVar

from twistlm.core.kernels.threads import side_by_side
from twistlm.core.processes import ALONE, Processes
from twistlm.core.rng import Rng
from twistlm.sampling.cases import Cases
from twistlm.sampling.particles import SMCResult
from twistlm.sampling.proposals import Drawn
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.samples import Samples

T = TypeVar("T")


@dataclass(frozen=True)
class JointSampler(Sampler):
    """Draws are made by the first process for all; given sequences are scored by each for its own rows.

    Which tokens come next depends on the last bit of a probability, and that on how many rows a product had: to divide
    the drawing would be to draw other sequences, and with resampling particles depend on each other anyway.

    Attributes:
        processes: that use it together. Methods are called by all of them, with the same arguments.
    """

    processes: Processes = ALONE

    def draw_at_once(self, rng: Rng, cases: Cases, num_samples: int, **options: Any) -> Samples:
        """As `Sampler.draw_at_once`, by the first process."""
        return self._by_first(rng, partial(self._plain.draw_at_once, rng, cases, num_samples, **options))

    def smc(self, rng: Rng, cases: Cases, num_particles: int, **options: Any) -> SMCResult:
        """As `Sampler.smc`, by the first process."""
        return self._by_first(rng, partial(self._plain.smc, rng, cases, num_particles, **options))

    def side_by_side(self, pieces: Sequence[Callable[[], T]]) -> Iterator[T]:
        """One after the other: what they send each other comes in the same order in every process."""
        return side_by_side(pieces, when=False)

    def densities(self, samples: Samples) -> Drawn:
        """As `Sampler.densities`; rows are divided among the processes."""
        count = len(samples)
        own = self._plain.densities(samples.select(self.processes.own(count)))
        log_p, log_psi, log_q = (self.processes.gathered(rows, count) for rows in (own.log_p, own.log_psi, own.log_q))
        return Drawn(samples.tokens, log_p, log_psi, log_q)

    def _by_first(self, rng: Rng, draw: Callable[[], T]) -> T:
        made, state = self.processes.of_first(lambda: (draw(), rng.state))
        # What is drawn from the same stream later is the same everywhere, too.
        rng.rewind(state)
        return made

    @cached_property
    def _plain(self) -> Sampler:
        return Sampler(**{each.name: getattr(self, each.name) for each in fields(Sampler)})


def among(sampler: Sampler, processes: Processes) -> Sampler:
    """`sampler`, to be used by several processes together; itself by one alone."""
    if processes.count == 1:
        return sampler
    return JointSampler(**{each.name: getattr(sampler, each.name) for each in fields(Sampler)}, processes=processes)
