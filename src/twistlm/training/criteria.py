"""What training is judged by on data that it never sees: smaller is better."""

from collections.abc import Callable

import torch
from torch import Tensor

from twistlm.core.estimates import Estimate, mean
from twistlm.core.logmath import normalise
from twistlm.core.rng import Rng
from twistlm.sampling import smc
from twistlm.sampling.exact.collection import Collection
from twistlm.sampling.resampling import invert
from twistlm.sampling.samples import Samples
from twistlm.sampling.twisted import TwistedLM
from twistlm.training.sources import Setting

Criterion = Callable[[Rng, TwistedLM], Estimate]
"""What training is judged by on data it never sees: smaller is better."""


def held_out_divergence(rng: Rng, held_out: Collection, setting: Setting, count: int = 128) -> Criterion:
    """G = E_σ[log p₀φ − log q] on base draws set aside: KL(σ‖q) up to the constant log Z.

    `count` of the draws are chosen once, by weight φ and systematically: the same expectation as over those that
    rejection accepted, with less noise, and few enough to score often. Its interval ignores that choice. Where all
    draws are exact (infilling), the first of them are taken.
    """
    draws = held_out.draws
    if draws.conditions is not None:
        return _mean_log_ratio(draws.select(torch.arange(min(count, len(draws)))), None, setting)
    weights = normalise(draws.log_phi).unsqueeze(0)
    points = (torch.arange(count) + rng.uniform((1, 1))) / count
    index, copies = invert(weights, points.to(weights.device)).unique(return_counts=True)
    return _mean_log_ratio(draws.select(index), copies, setting)


def _mean_log_ratio(chosen: Samples, copies: Tensor | None, setting: Setting) -> Criterion:
    def criterion(rng: Rng, model: TwistedLM) -> Estimate:
        found = model.densities(chosen, setting.proposal)
        ratios = (found.log_p - found.log_q).sum(-1) + chosen.log_phi
        return mean(ratios if copies is None else ratios.repeat_interleave(copies))

    return criterion


def negative_lower_bound(setting: Setting, num_particles: int = 16, num_runs: int = 16) -> Criterion:
    """−E[log Ẑ] by SMC, where no exact samples can be had."""

    def criterion(rng: Rng, model: TwistedLM) -> Estimate:
        result = smc.run(
            rng, model, setting.potential, prompts=[setting.prompt] * num_runs, num_particles=num_particles,
            num_steps=setting.num_steps, proposal=setting.proposal,
        )  # fmt: skip
        return mean(-result.log_Z_hat)

    return criterion
