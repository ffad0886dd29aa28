"""Fit the part of a twist that the proposal does not see.

log ψ(h, v) = (what steers) + w·ĥ. Training stops early by a criterion on the proposal, in which w cancels, so w is
still near zero then, and SMC resamples on weights that do not know how promising a prefix is. Given what steers, CTL's
loss is convex in w: it is minimised to the end, with a ridge penalty chosen on held-out draws.
"""

import torch
from torch import Tensor

from twistlm.core.errors import ConfigError
from twistlm.core.logmath import normalise
from twistlm.sampling.cases import distinct, rows_of
from twistlm.sampling.samples import Samples
from twistlm.sampling.twisted import TwistedLM
from twistlm.twists.base import HasValue

# Penalties to try, strongest first: each fit starts from the last one.
RIDGES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
MAX_ITERATIONS = 30


class _Objective:
    """CTL's loss on base draws as a function of w, all else fixed."""

    def __init__(self, model: TwistedLM, head: HasValue, draws: Samples) -> None:
        mask = draws.mask
        scores = model.score(draws)
        log_psi, siblings = scores.log_psi.detach(), scores.siblings
        children = log_psi.unsqueeze(-1)
        if siblings is not None:
            # A finished prefix has no children of its own: every slot is itself.
            children = torch.cat([children, torch.where(mask.unsqueeze(-1), siblings.detach(), children)], -1)
        # log of the mean ψ over the particles that share a prefix, [B, T]; the draws come from p₀, so no ratio.
        self.log_mean = torch.logsumexp(children, -1) - torch.log(torch.tensor(float(children.shape[-1])))
        # Prompts for which no draw has φ > 0 teach nothing.
        every = rows_of(draws.prompts, distinct(draws.prompts))
        groups = [index for index in every if bool(draws.log_phi[index].isfinite().any())] or every
        self.weights, self.groups = torch.zeros(len(draws), device=mask.device), groups
        for index in groups:
            self.weights[index] = normalise(draws.log_phi[index]).float() / len(groups)
        self.positive = (self.weights.unsqueeze(-1) * log_psi).sum(0)
        features = model.twist_features(draws)
        last = (mask.long().sum(-1, keepdim=True) - 1).clamp_min(0)
        steps = torch.arange(mask.shape[1], device=mask.device)
        # After EOS the twist stays what it was there, and so does its value.
        index = torch.minimum(steps.expand_as(mask), last)
        self.features = head.value_features(features)[torch.arange(len(draws), device=mask.device).unsqueeze(-1), index]

    def __call__(self, value: Tensor) -> Tensor:
        shift = self.features @ value
        log_psi = self.log_mean + shift
        negative = torch.stack([_log_mean_exp(log_psi[index]) for index in self.groups]).mean(0)
        return (negative - self.positive - (self.weights.unsqueeze(-1) * shift).sum(0)).mean()


def _log_mean_exp(log_psi: Tensor) -> Tensor:
    """log of the mean of exp over n prefixes [n, T]: [T], in their own precision."""
    return torch.logsumexp(log_psi, 0) - torch.log(torch.tensor(float(len(log_psi))))


def fit_value(model: TwistedLM, training: Samples, held_out: Samples) -> dict[str, float]:
    """Set the value of `model`'s twist to the minimiser of CTL's loss, in place.

    Args:
        model: with a twist that has a value (`twists.base.HasValue`).
        training: base draws, weighted by φ.
        held_out: base draws that choose the penalty.

    Returns:
        The held-out loss without a value ("before") and with it ("after"), and the penalty ("ridge"; 0 if none helped,
        and the value stays zero).

    Raises:
        ConfigError: the twist has no value.
    """
    head = model.twist.head if model.twist is not None else None
    if not isinstance(head, HasValue):
        raise ConfigError("this twist has no value to be fitted; use one that has, such as 'low_rank'")
    weight = head.value_weight()
    with torch.no_grad():
        weight.zero_()
        fitted, judged = _Objective(model, head, training), _Objective(model, head, held_out)
        before = judged(weight).item()
    value = weight.detach().clone().requires_grad_(True)
    best, chosen, ridge = before, weight.detach().clone(), 0.0
    for penalty in RIDGES:
        optimiser = torch.optim.LBFGS([value], max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe")

        def closure(penalty: float = penalty, optimiser: torch.optim.Optimizer = optimiser) -> float:
            optimiser.zero_grad()
            loss = fitted(value) + 0.5 * penalty * value.square().sum()
            loss.backward()
            return loss.item()

        optimiser.step(closure)
        with torch.no_grad():
            after = judged(value).item()
        if after >= best:
            break
        best, chosen, ridge = after, value.detach().clone(), penalty
    with torch.no_grad():
        weight.copy_(chosen)
    return {"before": before, "after": best, "ridge": ridge}
