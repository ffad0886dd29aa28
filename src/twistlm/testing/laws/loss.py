"""What every loss keeps."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from twistlm.models.tabular import TabularLM
from twistlm.potentials import Function
from twistlm.sampling.proposals import twist_induced
from twistlm.sampling.twisted import TwistedLM
from twistlm.testing.enumeration import Enumeration, prefix_table
from twistlm.testing.laws.trial import Trial
from twistlm.training.losses import objective
from twistlm.training.scored import Scored
from twistlm.training.scoring import score
from twistlm.training.sources import Batch
from twistlm.twists.sigmoid import probability
from twistlm.twists.tabular import TabularHead

VOCAB, NUM_STEPS = 3, 3
# A gradient smaller than the one is zero, and one above the other is not.
ZERO, NOT_ZERO = 1e-12, 1e-3
# Beyond it a logit is as good as infinite.
MOST_LOGIT = 30.0

Optimum = Callable[[Tensor, Tensor, Tensor], Tensor]
"""log ψ of a prefix, from log p₀(rest | prefix) and log φ of the sequences [n] that begin with it, and log Z."""


def expectation(log_p: Tensor, log_phi: Tensor, log_Z: Tensor) -> Tensor:
    """log E_p₀[φ | prefix], the optimal twist."""
    return torch.logsumexp(log_p + log_phi, 0)


def ratio(log_p: Tensor, log_phi: Tensor, log_Z: Tensor) -> Tensor:
    """log σ(prefix) / p₀(prefix), the optimal twist divided by Z."""
    return torch.logsumexp(log_p + log_phi, 0) - log_Z


def expected_log_phi(log_p: Tensor, log_phi: Tensor, log_Z: Tensor) -> Tensor:
    """E_p₀[log φ | prefix], which by Jensen is below the optimal twist."""
    return (log_p.exp() * log_phi).sum()


def check_loss(name: str, *, optimum: Optimum | None = expectation) -> None:
    """Hold a registered loss, or a weighted sum of them, against what training takes for granted.

    On a model of three tokens all sequences are summed over, so nothing here is noise. The loss is one finite number,
    the same each time and in whatever order the sequences come, also where φ = 0; its gradient comes by log ψ alone;
    and it is zero at the loss's own optimum, whatever proposal drew the sequences, and not at a wrong twist.

    Args:
        name: as on the command line: "ctl", or "0.7*ctl + 0.3*rl".
        optimum: what the loss learns; None if nobody knows it.

    Raises:
        AssertionError: a law is broken; the message says which, for what input, and how to mend it.
        ConfigError: there is no such loss.
    """
    for eos in ("ignore", "absorb"):
        trial = _LossTrial(name, eos)
        trial.one_finite_number()
        trial.same_again_in_any_order()
        trial.gradient_by_log_psi_alone()
        if optimum is not None:
            trial.zero_gradient_at(optimum)
            trial.zero_gradient_off_policy(optimum)


class _LossTrial(Trial):
    """A loss on a target that is summed over."""

    def __init__(self, name: str, eos: str) -> None:
        super().__init__(f"loss {name!r}")
        self.objective, self.eos = objective(name), eos
        self.lm = TabularLM.random(VOCAB, NUM_STEPS + 1, 5, eos_token_id=0)
        generator = torch.Generator().manual_seed(6)
        # A probability, and no symmetry at all, so that a sign error shows.
        log_phi = (1.5 * torch.randn(VOCAB**NUM_STEPS, generator=generator, dtype=torch.float64) - 1).clamp_max(0.0)
        powers = VOCAB ** torch.arange(NUM_STEPS)
        potential = Function(lambda prompts, tokens: log_phi[(tokens * powers).sum(-1)], on="tokens")
        base, prompt = TwistedLM(self.lm, None, eos), torch.tensor([1])
        self.truth = Enumeration.of(base, potential, prompt, NUM_STEPS)
        self.possible = ~self.truth.log_p.isneginf()
        self.samples = self.truth.samples(base).select(self.possible.nonzero().squeeze(-1))

    def model(self, table: Tensor) -> TwistedLM:
        """With a table for a twist: of log ψ, or of its logit if ψ is to be a probability."""
        twist = TabularHead.twist(table)
        return TwistedLM(self.lm, probability(twist) if self.objective.probability else twist, self.eos)

    def wrong(self) -> Tensor:
        """A table at random."""
        return torch.randn(self.lm.table.shape, generator=torch.Generator().manual_seed(77), dtype=torch.float64)

    def scored(self, model: TwistedLM, impossible: int = 0, drawn_by: TwistedLM | None = None) -> dict[str, Scored]:
        """Every role's batch: all sequences by their exact weights; of the first `impossible` of them φ is 0.

        They count as drawn from p₀, or from the proposal of `drawn_by`.
        """
        log_phi = self.samples.log_phi.clone()
        log_phi[:impossible] = -torch.inf
        samples, log_p = replace(self.samples, log_phi=log_phi), self.truth.log_p[self.possible]
        # Draws with log p₀/q = 0 and multiplicity p₀ are the same as each sequence once with q uniform.
        log_ratio = log_p.unsqueeze(-1).expand(-1, NUM_STEPS)
        if drawn_by is not None:
            found = drawn_by.densities(samples, twist_induced)
            samples = replace(samples, log_p=found.log_p, log_q=found.log_q)
            # Each as often as it is drawn.
            log_ratio = (found.log_p - found.log_q).cumsum(-1) + found.log_q.sum(-1, keepdim=True)
        batch = Batch(samples, log_p + log_phi, log_ratio)
        wanted = self.objective
        made = score(model, dict.fromkeys(wanted.roles, batch), normaliser=wanted.normaliser).scored
        if wanted.on_policy:
            # As if drawn from the proposal as it is: every sequence once, weighted by q.
            drawn = model.densities(samples, twist_induced)
            weights = drawn.log_q.sum(-1).exp().unsqueeze(-1).expand_as(drawn.log_q)
            made["drawn"] = replace(made["drawn"], weights=weights, log_p=drawn.log_p, log_q=drawn.log_q)
        return made

    def value(self, scored: Mapping[str, Scored], given: str) -> Tensor:
        """The loss."""
        return self.result(
            lambda: self.objective(scored),
            "it is defined for its roles",
            f"{given} (eos={self.eos!r})",
            "Take one argument for each of its `sources`, and say normaliser=True to read log_normaliser",
        )

    def one_finite_number(self) -> None:
        """Also where φ is 0."""
        for impossible, given in ((0, "all sequences"), (5, "sequences of which five have φ = 0")):
            value = self.value(self.scored(self.model(self.wrong()), impossible), given)
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            self.require(
                shape == [],
                "a loss is one number",
                f"of {given} it is {shape}",
                "Sum over the batch by the weights, and take the mean over t",
            )
            self.require(
                bool(value.isfinite()),
                "a loss is finite",
                f"of {given} it is {value.item()} (eos={self.eos!r})",
                "Read log φ by `end` or `finite`, which put φ = 0 at a finite distance",
            )

    def same_again_in_any_order(self) -> None:
        """And what it is given stays as it is."""
        scored = self.scored(self.model(self.wrong()))
        before = {role: _map(each, lambda x: x.detach().clone()) for role, each in scored.items()}
        value = self.value(scored, "all sequences")
        same = all(
            torch.equal(tensor, getattr(before[role], name))
            for role, each in scored.items()
            for name, tensor in _tensors(each).items()
        )
        self.require(
            same, "what it is given stays as it is", "it changed a field of Scored", "Make new tensors, in no place"
        )
        again = self.value(scored, "the same again")
        self.require(
            bool(again == value),
            "the same batch has the same loss",
            f"{again.item()} after {value.item()}",
            "Draw nothing at random, and keep nothing between calls",
        )
        backwards = torch.arange(len(self.samples)).flip(0)
        turned = self.value({role: _map(each, lambda x: x[backwards]) for role, each in scored.items()}, "backwards")
        self.require(
            bool((turned - value).abs() <= 1e-9 * value.abs().clamp_min(1.0)),
            "the order of sequences plays no part",
            f"backwards it is {turned.item()}, not {value.item()}",
            "Reduce over the batch by the weights alone",
        )

    def gradient_by_log_psi_alone(self) -> None:
        """It is there, and by no other way."""
        scored = self.scored(self.model(self.wrong()))
        self.require(
            self.value(scored, "all sequences").requires_grad,
            "its gradient comes by log ψ",
            "it has no gradient",
            "Leave log_psi attached",
        )
        detached = {role: _map(each, lambda x: x.detach()) for role, each in scored.items()}
        self.require(
            not self.value(detached, "a batch without gradient").requires_grad,
            "its gradient comes by log ψ alone",
            "a batch without gradient gives a loss with one",
            "Let a loss have no parameters of its own",
        )

    def zero_gradient_at(self, optimum: Optimum) -> None:
        """And nowhere else: not at a table at random, nor at the optimum with its sign turned."""
        table = self.optimum(optimum)
        for at, name, zero in (
            (table, "its optimum", True),
            (self.wrong(), "a wrong twist", False),
            (-table, "minus its optimum", False),
        ):
            largest = float(self.gradient(at).abs().max())
            self.require(
                largest < ZERO if zero else largest > NOT_ZERO,
                "the gradient is zero at its optimum, and not at a wrong twist",
                f"at {name} it is {largest:.2g} at most (eos={self.eos!r}, all sequences summed over)",
                "Check signs and weights against the derivation; if it learns something else, pass optimum=…",
            )

    def zero_gradient_off_policy(self, optimum: Optimum) -> None:
        """At its optimum, also by draws of a proposal that is neither p₀ nor its own."""
        largest = float(self.gradient(self.optimum(optimum), self.model(self.wrong())).abs().max())
        self.require(
            largest < ZERO,
            "what drew the sequences plays no part",
            f"at its optimum the gradient by another proposal's draws is {largest:.2g} at most (eos={self.eos!r})",
            "A loss that compares a prefix with φ of its own end asks for the role 'labelled', whose weights are those "
            "of whole sequences; 'base' has those of prefixes",
        )

    def optimum(self, optimum: Optimum) -> Tensor:
        """The table that the loss should learn."""

        def value(inside: Tensor) -> Tensor:
            within = inside & self.possible
            if not bool(within.any()):
                return torch.zeros((), dtype=torch.float64)
            log_p = self.truth.log_p[within]
            return optimum(log_p - torch.logsumexp(log_p, 0), self.truth.log_phi[within], self.truth.log_Z)

        log_psi = prefix_table(self.lm, self.truth, value)
        if self.objective.probability:
            # Where ψ = 1 for certain, the logit is infinite.
            log_psi = (log_psi - torch.log(-torch.expm1(log_psi))).clamp(-MOST_LOGIT, MOST_LOGIT)
        return log_psi

    def gradient(self, table: Tensor, drawn_by: TwistedLM | None = None) -> Tensor:
        """Of the loss with respect to the table, by the sequences as drawn from p₀, or by another model's proposal."""
        model = self.model(copy.deepcopy(table))
        assert model.twist is not None
        value = self.value(self.scored(model, drawn_by=drawn_by), "all sequences")
        (gradient,) = torch.autograd.grad(value, list(model.twist.module.parameters()))
        return gradient


def _map(scored: Scored, function: Callable[[Tensor], Tensor]) -> Scored:
    """Every tensor through the function."""
    changed: dict[str, Any] = {name: function(each) for name, each in _tensors(scored).items()}
    return replace(scored, **changed)


def _tensors(scored: Scored) -> dict[str, Tensor]:
    """Those that it has, by name."""
    made = {field.name: getattr(scored, field.name) for field in fields(Scored)}
    return {name: each for name, each in made.items() if isinstance(each, Tensor)}
