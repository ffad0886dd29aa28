"""What every proposal keeps."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from twistlm.core.rng import Rng
from twistlm.models.tabular import TabularLM
from twistlm.potentials import Function
from twistlm.sampling.cases import Case
from twistlm.sampling.particles import NextToken
from twistlm.sampling.proposals import Drawn, Proposal, draw, get_proposal
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.twisted import TwistedLM
from twistlm.testing.enumeration import Enumeration
from twistlm.testing.exhaustive import enumerate_paths
from twistlm.testing.laws.trial import Trial, close
from twistlm.twists.tabular import TabularHead

PREFIXES, VOCAB = 4, 5


def check_proposal(proposal: Proposal | str) -> None:
    """Hold a proposal against what sampling takes for granted.

    Its terms are numbers for every token of every prefix, each prefix for itself; they make a distribution, which gives
    a chance to whatever has one under p₀ψ; tokens are drawn with the very densities that weigh them; and SMC with it
    has E[Ẑ] = Z, summed over every random path.

    Args:
        proposal: the function, or the name of a registered one ("tempered:0.5").

    Raises:
        AssertionError: a law is broken; the message says which, for what input, and how to mend it.
        ConfigError: there is no proposal of that name.
    """
    made = get_proposal(proposal) if isinstance(proposal, str) else proposal
    name = proposal if isinstance(proposal, str) else getattr(proposal, "__name__", type(proposal).__name__)
    trial = _ProposalTrial(name, made)
    for twisted in (True, False):
        trial.terms(_following(twisted))
        trial.draws_by_its_densities(_following(twisted))
        trial.each_prefix_for_itself(_following(twisted))
        trial.covers(_following(twisted))
    trial.unbiased()


def _following(twisted: bool) -> NextToken:
    """Next tokens of six particles on four prefixes, with a twist or without."""
    generator = torch.Generator().manual_seed(0)
    logits, log_psi = torch.randn(2, PREFIXES, VOCAB, generator=generator)
    return NextToken(logits, log_psi if twisted else None, torch.tensor([0, 1, 2, 3, 0, 2]))


class _ProposalTrial(Trial):
    """A proposal on trial; every method is a law or two."""

    def __init__(self, name: str, proposal: Proposal) -> None:
        super().__init__(f"proposal {name}")
        self.proposal = proposal

    def total(self, following: NextToken) -> Tensor:
        """The sum of the terms, unnormalised log q, float64 [U, V]."""
        terms = self.result(
            lambda: self.proposal(following),
            "it has terms for every prefix",
            f"{len(following.logits)} prefixes",
            "Return a tuple of tensors [U, V]; log_psi and inducing are None where there is no twist",
        )
        law, remedy = "its terms are numbers for every token", "Return a tuple of floating-point tensors [U, V]"
        shape = list(following.logits.shape)
        for term in terms if isinstance(terms, tuple) and terms else (None,):
            seen = list(term.shape) if isinstance(term, Tensor) else type(term).__name__
            self.require(seen == shape, law, f"for logits {shape} a term is {seen}", remedy)
        total = torch.stack([term.double() for term in terms]).sum(0)
        wrong = total.isnan() | (total == torch.inf)
        self.require(not bool(wrong.any()), law, f"{int(wrong.sum())} of them are NaN or +∞", remedy)
        return total

    def terms(self, following: NextToken) -> None:
        """What it is given stays as it is."""
        before = following.logits.clone(), None if following.log_psi is None else following.log_psi.clone()
        self.total(following)
        same = following.logits.equal(before[0])
        if following.log_psi is not None and before[1] is not None:
            same &= following.log_psi.equal(before[1])
        self.require(
            same, "what it is given stays as it is", "it changed the logits or log ψ", "Make new tensors, in no place"
        )

    def each_prefix_for_itself(self, following: NextToken) -> None:
        """Whatever else is in the batch."""
        whole = self.total(following).log_softmax(-1)
        for row in range(len(following.logits)):
            part = slice(row, row + 1)
            log_psi = None if following.log_psi is None else following.log_psi[part]
            alone = self.total(NextToken(following.logits[part], log_psi, torch.tensor([0]))).log_softmax(-1)
            self.require(
                bool(close(alone[0], whole[row], 1e-6).all()),
                "a batch is its prefixes, each for itself",
                f"alone prefix {row} has log q {alone[0].tolist()}, in a batch {whole[row].tolist()}",
                "Use no statistics over the batch",
            )

    def covers(self, following: NextToken) -> None:
        """Weights are unbiased only if every token that counts may be drawn."""
        possible = following.logits if following.log_psi is None else following.logits + following.log_psi
        log_q = self.total(following).log_softmax(-1)
        missed = possible.isfinite() & ~log_q.isfinite()
        self.require(
            not bool(missed.any()),
            "whatever has a chance under p₀ψ has one",
            f"{int(missed.sum())} of {missed.numel()} tokens with p₀ψ > 0 are never drawn",
            "Mix in a little of p₀, or temper: a token that is cut off makes Ẑ too small",
        )

    def draws_by_its_densities(self, following: NextToken) -> None:
        """Every token by its probability, and the probabilities sum to one."""
        law = "tokens are drawn with the densities that weigh them, which sum to one"
        log_p = following.logits.double().log_softmax(-1)
        for row in range(PREFIXES):
            one = replace(following, rows=torch.tensor([row]))
            paths = enumerate_paths(partial(self._drawn, one))
            total = sum(float(drawn.log_q.exp()) for _, drawn in paths)
            for chance, drawn in paths:
                said = float(drawn.log_q.exp())
                self.require(
                    abs(chance - said) < 1e-5
                    and abs(total - 1.0) < 1e-5
                    and abs(float(drawn.log_p) - float(log_p[row, drawn.tokens])) < 1e-5,
                    law,
                    f"after prefix {row} token {int(drawn.tokens)} is drawn with probability {chance:.6g} and weighed "
                    f"by {said:.6g}; all sum to {total:.6g}",
                    "Let the terms depend on the prefix alone: the same for every call",
                )

    def _drawn(self, following: NextToken, rng: Rng) -> Drawn:
        return draw(rng, following, self.proposal, torch.tensor([-1]))

    def unbiased(self) -> None:
        """E[Ẑ] = Z for two particles and two steps, resampling at every one."""
        lm, prompt = TabularLM.random(2, 3, 5, eos_token_id=0), torch.tensor([1])
        table = torch.randn(lm.table.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        log_phi = torch.tensor([-0.3, -2.0, -1.0, -0.1], dtype=torch.float64)
        potential = Function(lambda prompts, tokens: log_phi[tokens[:, 0] + 2 * tokens[:, 1]], on="tokens")
        model = TwistedLM(lm, TabularHead.twist(table), "ignore")
        sampler = Sampler(model, potential, 2, proposal=self.proposal, ess_threshold=1.0)
        paths = enumerate_paths(lambda rng: float(sampler.smc(rng, [Case(prompt)], 2).log_Z_hat.exp()))
        mean = sum(chance * z for chance, z in paths)
        truth = float(Enumeration.of(model, potential, prompt, 2).log_Z.exp())
        self.require(
            abs(mean - truth) < 1e-9,
            "SMC with it has E[Ẑ] = Z",
            f"summed over {len(paths)} random paths E[Ẑ] = {mean:.9g} and Z = {truth:.9g}",
            "Return terms whose normalised sum is what a token is drawn by",
        )
