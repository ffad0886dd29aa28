"""Small tabular targets with no symmetry at all, so that a sign error shows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from twistlm.models.base import Prompts
from twistlm.models.tabular import TabularLM
from twistlm.potentials.base import BasePotential
from twistlm.sampling import cases as sampling
from twistlm.sampling.particles import SMCResult
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.samples import Samples
from twistlm.sampling.twisted import TwistedLM
from twistlm.testing import Enumeration, exact_twist
from twistlm.testing.enumeration import prefix_table
from twistlm.testing.laws.loss import expected_log_phi
from twistlm.training.losses import objective
from twistlm.twists.sigmoid import probability
from twistlm.twists.tabular import TabularHead


@dataclass(frozen=True)
class TablePotential(BasePotential):
    """φ looked up by the number that the tokens spell in base V."""

    table: Tensor
    vocab_size: int

    def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        powers = self.vocab_size ** torch.arange(tokens.shape[1])
        offset = torch.tensor([int(prompt.sum()) for prompt in prompts])
        return self.table[((tokens * powers).sum(-1) + offset) % len(self.table)]


@dataclass(frozen=True)
class Case:
    """A tabular target with a wrong twist and with the exact one."""

    lm: TabularLM
    potential: TablePotential
    prompt: Tensor
    num_steps: int
    eos: str

    @property
    def at(self) -> sampling.Case:
        return sampling.Case(self.prompt)

    @property
    def base(self) -> TwistedLM:
        return TwistedLM(self.lm, None, self.eos)

    @property
    def twisted(self) -> TwistedLM:
        generator = torch.Generator().manual_seed(77)
        log_psi = torch.randn(self.lm.table.shape, generator=generator, dtype=torch.float64)
        return TwistedLM(self.lm, TabularHead.twist(log_psi), self.eos)

    @property
    def optimal(self) -> TwistedLM:
        return TwistedLM(self.lm, exact_twist(self.base, self.truth), self.eos)

    @property
    def mean_log_phi(self) -> Tensor:
        """E_p₀[log φ | s_1:t] for every prefix: what controlled decoding learns."""
        truth = self.truth

        def value(inside: Tensor) -> Tensor:
            within = inside & ~truth.log_p.isneginf()
            log_p = truth.log_p[within]
            return expected_log_phi(log_p - torch.logsumexp(log_p, 0), truth.log_phi[within], truth.log_Z)

        return prefix_table(self.lm, truth, value)

    def twisted_for(self, loss: str, table: Tensor) -> TwistedLM:
        """A tabular twist as the loss needs it: `table` is log ψ, or the logit of ψ."""
        twist = TabularHead.twist(table)
        return TwistedLM(self.lm, probability(twist) if objective(loss).probability else twist, self.eos)

    @property
    def truth(self) -> Enumeration:
        return Enumeration.of(self.base, self.potential, self.prompt, self.num_steps)


def cases(prompts: Prompts, conditions: Tensor | None = None) -> list[sampling.Case]:
    given = [None] * len(prompts) if conditions is None else conditions
    return [sampling.Case(*each) for each in zip(prompts, given, strict=True)]


def samples_of(result: SMCResult, model: TwistedLM, prompts: Prompts, conditions: Tensor | None = None) -> Samples:
    return Sampler(model, None, 1).samples_of(result, cases(prompts, conditions))


def make_case(
    vocab_size: int = 3, num_steps: int = 3, prompt: tuple[int, ...] = (1,), eos: str = "ignore", seed: int = 5
) -> Case:
    lm = TabularLM.random(vocab_size, num_steps + len(prompt), seed, eos_token_id=0)
    generator = torch.Generator().manual_seed(seed + 1)
    table = 1.5 * torch.randn(vocab_size**num_steps, generator=generator, dtype=torch.float64) - 1.0
    # A probability, so that rejection sampling applies; clipping makes some values exactly 1.
    table = table.clamp_max(0.0)
    potential = TablePotential(table, vocab_size)
    object.__setattr__(potential, "log_upper_bound", 0.0)
    return Case(lm, potential, torch.tensor(prompt), num_steps, eos)
