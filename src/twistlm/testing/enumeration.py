"""Everything about a tabular target, by summing over all V^T sequences."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from twistlm.models.tabular import TabularLM
from twistlm.potentials.protocol import Potential
from twistlm.sampling.proposals import Proposal, twist_induced
from twistlm.sampling.samples import Samples
from twistlm.sampling.twisted import TwistedLM
from twistlm.twists.base import Twist
from twistlm.twists.tabular import TabularHead


@dataclass(frozen=True)
class Enumeration:
    """All S sequences of T tokens after one prompt, with their exact log densities.

    Attributes:
        prompt: the prompt.
        tokens: [S, T].
        log_p: log p₀(s) [S]; −inf for a sequence with a token other than EOS after an absorbing EOS.
        log_phi: log φ(s) [S].
    """

    prompt: Tensor
    tokens: Tensor
    log_p: Tensor
    log_phi: Tensor

    @staticmethod
    def of(model: TwistedLM, potential: Potential, prompt: Tensor, num_steps: int) -> "Enumeration":
        """Enumerate p₀ and φ; the twist plays no part."""
        tokens = torch.tensor(list(product(range(model.lm.vocab_size), repeat=num_steps)))
        prompts = [prompt] * len(tokens)
        log_p_token = torch.log_softmax(model.lm.logits(model.lm.features(prompts, tokens)).double(), -1)
        chosen = log_p_token.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        mask = model.mask(tokens)
        allowed = mask | (tokens == (-1 if model.absorbing is None else model.absorbing))
        log_p = torch.where(mask, chosen, 0.0).sum(-1).masked_fill(~allowed.all(-1), -torch.inf)
        return Enumeration(prompt, tokens, log_p, potential.log_phi(prompts, tokens).double())

    @property
    def log_Z(self) -> Tensor:
        """log Σ p₀φ, a scalar."""
        return torch.logsumexp(self.log_p + self.log_phi, 0)

    @property
    def log_sigma(self) -> Tensor:
        """log σ(s) [S]."""
        return self.log_p + self.log_phi - self.log_Z

    def log_q(self, model: TwistedLM, proposal: Proposal = twist_induced) -> Tensor:
        """log q(s) [S] of `model`'s proposal; −inf where p₀ is."""
        log_q = model.densities(self.samples(model), proposal).log_q.sum(-1)
        return log_q.masked_fill(self.log_p.isneginf(), -torch.inf)

    def kl_q_target(self, model: TwistedLM, proposal: Proposal = twist_induced) -> float:
        """KL(q‖σ)."""
        log_q = self.log_q(model, proposal)
        return _kl(log_q, self.log_sigma)

    def kl_target_q(self, model: TwistedLM, proposal: Proposal = twist_induced) -> float:
        """KL(σ‖q)."""
        return _kl(self.log_sigma, self.log_q(model, proposal))

    def kl_q_prior(self, model: TwistedLM, proposal: Proposal = twist_induced) -> float:
        """KL(q‖p₀)."""
        return _kl(self.log_q(model, proposal), self.log_p)

    def samples(self, model: TwistedLM) -> Samples:
        """All S sequences as a batch (log densities not filled in)."""
        zeros = torch.zeros(self.tokens.shape, dtype=torch.float64)
        prompts = [self.prompt] * len(self.tokens)
        return Samples(prompts, self.tokens, model.mask(self.tokens), zeros, zeros, self.log_phi)


def _kl(log_a: Tensor, log_b: Tensor) -> float:
    support = ~log_a.isneginf()
    return float((log_a[support].exp() * (log_a[support] - log_b[support])).sum())


def prefix_table(lm: TabularLM, enumeration: Enumeration, value: Callable[[Tensor], Tensor]) -> Tensor:
    """For every prefix of the enumerated prompt, `value` of which sequences [S] begin with it; a table of log ψ.

    Entries [prefixes, V] as of a `TabularHead`; 0 for all other prefixes.
    """
    table = torch.zeros_like(lm.table)
    nodes = lm.features([enumeration.prompt] * len(enumeration.tokens), enumeration.tokens)
    for t in range(enumeration.tokens.shape[1]):
        keys = nodes[:, t] * lm.vocab_size + enumeration.tokens[:, t]
        for key in keys.unique():
            table[key // lm.vocab_size, key % lm.vocab_size] = value(keys == key)
    return table


def exact_twist(model: TwistedLM, enumeration: Enumeration) -> Twist:
    """ψ*_t(s_1:t) = E_p₀[φ | s_1:t] for every prefix of the enumerated prompt; 0 (log ψ) elsewhere."""
    lm = model.lm
    assert isinstance(lm, TabularLM)
    joint = enumeration.log_p + enumeration.log_phi

    def value(inside: Tensor) -> Tensor:
        log_prefix = torch.logsumexp(enumeration.log_p[inside], 0)
        return torch.logsumexp(joint[inside], 0) - log_prefix if log_prefix.isfinite() else log_prefix.new_zeros(())

    return TabularHead.twist(prefix_table(lm, enumeration, value))
