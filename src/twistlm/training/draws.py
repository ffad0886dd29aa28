"""Draws that values are fitted on: whoever drew them, weighed against the mixture of all that did."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from twistlm.core.logmath import normalise
from twistlm.core.rng import Rng
from twistlm.potentials.prefixes import softened
from twistlm.sampling.cases import Cases, rows_of
from twistlm.sampling.mixture import Pool
from twistlm.sampling.resampling import invert, stratified_points
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.samples import Samples


@dataclass(frozen=True)
class Draws:
    """n sequences with log p₀/q̄ of their prefixes [n, T], log p₀φ/q̄ [n] and the rows of each target."""

    samples: Samples
    log_ratio: Tensor
    log_w: Tensor
    groups: Sequence[Tensor]

    @staticmethod
    def of(pool: Pool, cases: Cases) -> "Draws":
        """A pool's, with the rows of each of some targets."""
        log_ratio = pool.log_ratio
        log_w = log_ratio[:, -1] + pool.samples.log_phi
        return Draws(pool.samples, log_ratio, log_w, rows_of(pool.samples.prompts, cases))

    def steered(self, sampler: Sampler) -> tuple[Tensor, Tensor]:
        """What is told of prefixes by `sampler`'s twist: log(q/p₀), and log ψ, finite, of each [n, T]."""
        found = sampler.densities(replace(self.samples, siblings=None))
        log_psi = sampler.model.carried(found.log_psi, self.samples.mask)
        return (found.log_q - found.log_p).cumsum(-1), softened(log_psi)


def chosen(rng: Rng, there: Draws, each: int) -> Draws:
    """About so many of each target: those that matter more often than others."""
    # Half evenly and half by weight, and the ratios make up for it: prefixes are dear. A draw that is chosen several
    # times is there once, or a fit would be judged by what it was fitted to.
    rows, ratios, groups, so_far = [], [], [], 0
    for number, index in enumerate(there.groups):
        evenly = torch.full((len(index),), 1 / len(index), dtype=torch.float64)
        weights = normalise(there.log_w[index]).cpu()
        chance = (evenly + weights) / 2 if bool(weights.any()) else evenly
        points = stratified_points(rng.fork("chosen", number), 1, each)
        picked, copies = invert(chance.unsqueeze(0), points)[0].unique(return_counts=True)
        rows.append(index[picked])
        ratios.append((evenly / chance).log()[picked] + copies.log())
        groups.append(torch.arange(so_far, so_far := so_far + len(picked)))
    picks, more = torch.cat(rows), torch.cat(ratios).to(there.log_w.device)
    return Draws(
        there.samples.select(picks),
        there.log_ratio[picks] + more.unsqueeze(-1),
        there.log_w[picks] + more,
        groups,
    )
