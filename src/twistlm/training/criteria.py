"""What training is judged by on data that it never sees: smaller is better."""

from collections.abc import Callable

import torch
from torch import Tensor

from twistlm.core.estimates import Estimate, mean
from twistlm.core.logmath import normalise
from twistlm.core.rng import Rng
from twistlm.sampling.cases import Cases, emphases_of, rows_of, shares_of
from twistlm.sampling.exact.collection import Collection
from twistlm.sampling.resampling import invert, systematic_points
from twistlm.sampling.sampler import Sampler, in_batches
from twistlm.sampling.samples import Samples

Criterion = Callable[[Rng, Sampler], Estimate]
"""What training is judged by on data it never sees: smaller is better."""


def held_out_divergence(rng: Rng, held_out: Collection, cases: Cases, count: int = 128) -> Criterion:
    """G = E_σ[log p₀φ − log q] on base draws set aside: KL(σ‖q) up to the constant log Z.

    Of several prompts it is the mean by their weights, over those that a draw with φ > 0 was had for.

    `count` of the draws are chosen once, by weight φ and systematically: the same expectation as over those that
    rejection accepted, with less noise, and few enough to score often. Its interval ignores that choice. Where all
    draws are exact (infilling), the first of them are taken.
    """
    draws = held_out.draws
    if draws.conditions is not None:
        return _mean_log_ratio(draws.select(torch.arange(min(count, len(draws)))), None)
    log_weights = held_out.log_weights
    weights = torch.zeros(len(draws), dtype=torch.float64, device=log_weights.device)
    for index, share in zip(rows_of(draws.prompts, cases), shares_of(cases).tolist(), strict=True):
        if len(index):
            weights[index] = share * normalise(log_weights[index])
    weights = (weights / weights.sum()).unsqueeze(0)
    index, copies = invert(weights, systematic_points(rng, 1, count)).unique(return_counts=True)
    return _mean_log_ratio(draws.select(index), copies)


def _mean_log_ratio(chosen: Samples, copies: Tensor | None) -> Criterion:
    def criterion(rng: Rng, sampler: Sampler) -> Estimate:
        ratios = sampler.log_ratios(chosen)
        return mean(ratios if copies is None else ratios.repeat_interleave(copies))

    return criterion


def negative_lower_bound(cases: Cases, num_particles: int = 16, num_runs: int = 16) -> Criterion:
    """−E[log Ẑ] by SMC, where no exact samples can be had; over `num_runs` runs, or one of each case if those are more.

    Of several prompts it is the mean by their weights. A run in which all particles die counts as a failure of the
    sampler: it raises.
    """
    runs = list(cases) * max(1, num_runs // len(cases))
    emphases = emphases_of(runs)

    def criterion(rng: Rng, sampler: Sampler) -> Estimate:
        values = [sampler.smc(rng, some, num_particles).log_Z_hat for _, some in in_batches(runs, num_particles)]
        log_Z = torch.cat(values)
        return mean(-log_Z if emphases is None else -log_Z * emphases.to(log_Z))

    return criterion
