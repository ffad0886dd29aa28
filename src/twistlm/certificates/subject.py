"""What can be certified: anything that samples a target and says how likely it was to sample what it is shown."""

from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from twistlm.certificates.bounds import Bounds, log_Z_bounds
from twistlm.core.rng import Rng
from twistlm.potentials.protocol import Potential
from twistlm.sampling.exact.collection import ExactSamples
from twistlm.sampling.proposals import Proposal, base, twist_induced
from twistlm.sampling.ranges import Ranges
from twistlm.sampling.resampling import Resampler, systematic
from twistlm.sampling.sampler import exact_log_ratios, proposal_samples
from twistlm.sampling.samples import Samples
from twistlm.sampling.twisted import TwistedLM


class Sampler(Protocol):
    """What can be certified: anything that samples, and says how likely it was to sample what it is shown."""

    @property
    def num_steps(self) -> int:
        """T."""

    @property
    def ranges(self) -> Ranges:
        """What is known of φ and of the weights by definition."""

    def draw(self, rng: Rng, num_samples: int) -> Samples:
        """Independent samples, with their log p₀, log q and log φ."""

    def exact_ratios(self, exact: ExactSamples) -> Tensor:
        """log p₀φ − log q of exact samples [m]."""

    def smc_bounds(
        self, rng: Rng, exact: ExactSamples | None, num_particles: int, num_runs: int, iwae: Bounds
    ) -> Bounds | None:
        """A sandwich by SMC; `iwae`, the one without resampling, if that is the same; None where there is no SMC."""


@dataclass(frozen=True)
class Subject:
    """A sampler of ours: proposal and SMC.

    Attributes:
        model: base model and twist; without a twist, the base model itself.
        potential: φ, bound to the model.
        prompt: the prompt's tokens.
        num_steps: T.
        proposal: q.
        resampler: scheme of SMC.
        ess_threshold: SMC resamples when ESS ≤ this fraction of N.
    """

    model: TwistedLM
    potential: Potential
    prompt: Tensor
    num_steps: int
    proposal: Proposal = twist_induced
    resampler: Resampler = systematic
    ess_threshold: float = 0.5

    @property
    def ranges(self) -> Ranges:
        """The bounds of φ; without a twist, or where it does not propose, they are those of the weights."""
        return Ranges.of(self.potential, is_base=self.model.twist is None or self.proposal is base)

    def draw(self, rng: Rng, num_samples: int) -> Samples:
        """Independent proposal samples."""
        return proposal_samples(
            rng, self.model, self.potential, prompts=[self.prompt], num_samples=num_samples, num_steps=self.num_steps,
            proposal=self.proposal,
        )  # fmt: skip

    def exact_ratios(self, exact: ExactSamples) -> Tensor:
        """log p₀φ − log q of exact samples [m]."""
        return exact_log_ratios(self.model, exact, self.proposal)

    def smc_bounds(
        self, rng: Rng, exact: ExactSamples | None, num_particles: int, num_runs: int, iwae: Bounds
    ) -> Bounds | None:
        """A sandwich by SMC. Without a twist all weights are equal until φ comes in, so it never resamples: IWAE."""
        if self.model.twist is None:
            return replace(iwae, method="smc")
        return self.bounds(rng, exact, num_particles, num_runs)

    def draw_given(self, rng: Rng, conditions: Tensor) -> Samples:
        """One independent proposal sample for each of conditions [R, c]."""
        return proposal_samples(
            rng, self.model, self.potential, prompts=[self.prompt] * len(conditions), num_samples=1,
            num_steps=self.num_steps, proposal=self.proposal, conditions=conditions,
        )  # fmt: skip

    def bounds(
        self, rng: Rng, exact: ExactSamples | None, num_particles: int, num_runs: int, method: str = "smc"
    ) -> Bounds:
        """A sandwich of log Z; at most one run for each exact sample."""
        return log_Z_bounds(
            rng, self.model, self.potential, prompt=self.prompt, num_steps=self.num_steps,
            num_particles=num_particles, num_runs=num_runs if exact is None else min(num_runs, len(exact)),
            method=method, exact=exact, proposal=self.proposal, resampler=self.resampler,
            ess_threshold=self.ess_threshold,
        )  # fmt: skip
