"""Another language model as the sampler: one that was tuned towards the target, and is to be certified.

It samples by itself, so its q is its own likelihood; p₀ and φ of what it writes come from the target. There is no SMC
with it: its weights do not vary from step to step towards σ, only at the end.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from twistlm.certificates.bounds import Bounds
from twistlm.core.errors import ModelError
from twistlm.core.rng import Rng
from twistlm.models.base import BaseLM
from twistlm.sampling.exact.collection import ExactSamples
from twistlm.sampling.proposals import base
from twistlm.sampling.ranges import Ranges
from twistlm.sampling.sampler import proposal_samples
from twistlm.sampling.samples import Samples
from twistlm.sampling.target import Target
from twistlm.sampling.twisted import TwistedLM


@dataclass(frozen=True)
class OtherModel:
    """A causal language model as a sampler of a target.

    Attributes:
        target: p₀, φ, prompt and length.
        lm: the model, which has the tokenizer of p₀.

    Raises:
        ModelError: its vocabulary is another one.
    """

    target: Target
    lm: BaseLM

    def __post_init__(self) -> None:
        """Check that both read and write the same tokens."""
        name, own = getattr(self.lm, "name", "the model"), self.target.lm
        if self.lm.vocab_size != own.vocab_size:
            raise ModelError(
                f"{name} has {self.lm.vocab_size} tokens and the base model {self.target.model_name} has "
                f"{own.vocab_size}; certify a model that was tuned from {self.target.model_name}"
            )
        some = torch.arange(own.vocab_size).split(1)
        if self.lm.eos_token_id != own.eos_token_id or self.lm.decode(some) != own.decode(some):
            raise ModelError(
                f"{name} has another tokenizer than the base model {self.target.model_name}; certify a model that was "
                f"tuned from {self.target.model_name}"
            )

    @property
    def num_steps(self) -> int:
        """T."""
        return self.target.num_tokens

    @property
    def ranges(self) -> Ranges:
        """The bounds of φ; nothing is known of the weights."""
        return Ranges.of(self.target.potential, is_base=False)

    @property
    def _own(self) -> TwistedLM:
        return TwistedLM(self.lm, None, self.target.eos)

    def draw(self, rng: Rng, num_samples: int) -> Samples:
        """Independent samples of the model, with their log p₀ and log φ."""
        drawn = proposal_samples(
            rng, self._own, self.target.bound_potential, prompts=[self.target.prompt_tokens], num_samples=num_samples,
            num_steps=self.num_steps, proposal=base,
        )  # fmt: skip
        return replace(drawn, log_p=self.target.twisted().densities(drawn, base).log_p)

    def exact_ratios(self, exact: ExactSamples) -> Tensor:
        """log p₀φ − log q of exact samples [m]."""
        samples = exact.samples
        # Their features, if they have any, are the base model's.
        log_q = self._own.densities(replace(samples, features=None), base).log_q.sum(-1)
        return samples.log_p.sum(-1) + samples.log_phi - log_q

    def smc_bounds(
        self, rng: Rng, exact: ExactSamples | None, num_particles: int, num_runs: int, iwae: Bounds
    ) -> Bounds | None:
        """None: there is no SMC with it."""
        return None
