"""From batches to what a loss sees: scores with gradient, and the weights of each role."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from twistlm.core.errors import ConfigError
from twistlm.core.logmath import ess, normalise
from twistlm.core.processes import ALONE, Processes
from twistlm.sampling.samples import Samples
from twistlm.sampling.twisted import Scores, TwistedLM
from twistlm.training.scored import Scored
from twistlm.training.sources import Batch


@dataclass(frozen=True)
class Scoring:
    """The batches that a loss asked for, by role, and the effective number of target samples among them."""

    scored: dict[str, Scored]
    ess: float


def score(model: TwistedLM, batches: dict[str, Batch], *, normaliser: bool, processes: Processes = ALONE) -> Scoring:
    """Score each role's batch with gradient; a batch that serves two roles is scored once.

    Of several processes each scores its own rows and has the scores of all, so that weights are normalised over the
    whole batch and every process has the whole loss; only its own rows' scores have a gradient there.

    A part of a batch is weighted by shares of the whole, times the number of such parts: one without a good sequence
    says little, and the mean over parts is the whole. Only weights towards π_t, which move with the twist, are
    normalised within the part.

    Siblings count where particles of π_t are wanted, unless the normaliser is wanted too: they have none.

    Raises:
        ConfigError: a batch without prefix weights was given for a role other than the target.
    """
    with_siblings = batches["intermediate"] if "intermediate" in batches and not normaliser else None
    scores_of = {
        id(batch): _scores(
            model,
            batch.samples if batch is with_siblings else replace(batch.samples, siblings=None),
            normaliser,
            processes,
        )
        for batch in batches.values()
    }
    made, effective = {}, float("nan")
    for role, batch in batches.items():
        scores, samples = scores_of[id(batch)], batch.samples
        log_psi, mask = scores.log_psi, samples.mask
        if role == "target":
            weights = _at_every_t(_shares(batch, lambda batch: batch.log_w), mask)
            effective = _effective(batch)
        elif role == "intermediate":
            log_psi, mask, weights = _towards_intermediate(batch, scores.log_psi, scores.siblings)
        elif role in ("base", "labelled"):
            # φ of the whole sequence tells of its rest, which q drew too; a fresh end of a prefix is p₀'s.
            whole = role == "labelled" and samples.log_phi.dim() == 1
            weights = _shares(batch, _ratio_of_wholes if whole else _ratio)
        else:
            equal = torch.full((len(samples),), 1 / len(samples), dtype=torch.float64, device=log_psi.device)
            weights = _at_every_t(_counted(equal, batch), mask)
        made[role] = Scored(
            mask=mask,
            weights=weights.to(log_psi.dtype),
            log_p=samples.log_p,
            log_q=samples.log_q,
            log_psi=log_psi,
            log_normaliser=scores.log_normaliser,
            log_phi=samples.log_phi,
            baseline=_shares(batch, _equal).unsqueeze(-1).to(log_psi) if batch.baseline else None,
            num_targets=batch.num_targets,
            target_weights=batch.target_weights,
        )
    return Scoring(made, effective)


def _scores(model: TwistedLM, samples: Samples, normaliser: bool, processes: Processes) -> Scores:
    if processes.count == 1:
        return model.score(samples, normaliser=normaliser)
    count = len(samples)
    own = model.score(samples.select(processes.own(count)), normaliser=normaliser)
    log_psi, log_normaliser, siblings = (
        None if rows is None else processes.gathered(rows, count)
        for rows in (own.log_psi, own.log_normaliser, own.siblings)
    )
    assert log_psi is not None
    return Scores(log_psi, log_normaliser, siblings)


def _families(own: Tensor, siblings: Tensor, mask: Tensor) -> Tensor:
    """Rows [B · (1 + K), T] of sequences [B, T] and siblings [B, T, K]; a finished prefix has no child but itself."""
    siblings = torch.where(mask.unsqueeze(-1), siblings, own.unsqueeze(-1))
    return torch.cat([own.unsqueeze(-1), siblings], -1).transpose(1, 2).flatten(0, 1)


def _ratios(batch: Batch) -> Tensor:
    """log p₀/q of families: a sibling shares its prefix's ratio and has its own last factor."""
    log_ratio, siblings = _ratio(batch), batch.samples.siblings
    assert siblings is not None
    before = torch.nn.functional.pad(log_ratio, (1, 0))[:, :-1].unsqueeze(-1)
    return _families(log_ratio, before + siblings.log_ratio, batch.samples.mask)


def _shares(batch: Batch, log_w_of: Callable[[Batch], Tensor]) -> Tensor:
    """Weights of every sequence [B, …]; they sum to one over a batch, or in the mean over its parts."""
    whole = _whole(batch)
    weights = _normalised(log_w_of(whole), whole)
    if batch.rows is None:
        return weights
    return weights[batch.rows] * (len(whole.samples) / len(batch.samples))


def _whole(batch: Batch) -> Batch:
    """The batch that it is a part of, or itself."""
    return batch if batch.whole is None else batch.whole


def _effective(batch: Batch) -> float:
    """Effective sequences towards σ, of the whole batch."""
    whole = _whole(batch)
    return float(ess(whole.log_w.view(whole.num_targets, -1)).sum())


def _at_every_t(weights: Tensor, mask: Tensor) -> Tensor:
    """Weights of whole sequences [B] as those of their prefixes [B, T]."""
    return weights.unsqueeze(-1).expand(mask.shape)


def _equal(batch: Batch) -> Tensor:
    """Log weights [B] of draws that are as good as each other; of a target that none of them hits, none."""
    by_target = batch.log_w.view(batch.num_targets, -1)
    hit = by_target.isfinite().any(-1, keepdim=True)
    return torch.zeros_like(by_target).masked_fill(~hit, -torch.inf).flatten()


def _ratio(batch: Batch) -> Tensor:
    if batch.log_ratio is None:
        raise ConfigError(
            "this source gives target samples only; choose 'base', 'proposal' or 'draws' for the loss's other roles"
        )
    return batch.log_ratio


def _ratio_of_wholes(batch: Batch) -> Tensor:
    """log p₀/q of the whole sequence at each of its prefixes [B, T]."""
    log_ratio = _ratio(batch)
    return log_ratio[:, -1:].expand_as(log_ratio)


def _towards_intermediate(batch: Batch, log_psi: Tensor, siblings: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """log ψ, mask and self-normalised weights p₀ψ_t/q [B', T]; siblings count as particles of their prefix."""
    log_ratio, mask = _ratio(batch), batch.samples.mask
    if siblings is not None and batch.samples.siblings is not None:
        log_ratio, log_psi = _ratios(batch), _families(log_psi, siblings, mask)
        mask = mask.repeat_interleave(1 + siblings.shape[-1], 0)
    return log_psi, mask, _normalised(log_ratio + log_psi.detach(), batch)


def _normalised(log_w: Tensor, batch: Batch) -> Tensor:
    """Weights of sequences [B, …] that sum to 1/R for each of the R targets, times what it counts."""
    weights = normalise(log_w.unflatten(0, (batch.num_targets, -1)), dim=1).flatten(0, 1) / batch.num_targets
    return _counted(weights, batch)


def _counted(weights: Tensor, batch: Batch) -> Tensor:
    """Weights of sequences [B, …], those of each target times what it counts."""
    if batch.target_weights is None:
        return weights
    by_target = weights.unflatten(0, (batch.num_targets, -1))
    counts = batch.target_weights.to(weights).view(-1, *[1] * weights.dim())
    counted: Tensor = (by_target * counts).flatten(0, 1)
    return counted
