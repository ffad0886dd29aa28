"""Where training samples come from, and how they are weighted.

A source makes independent sequences with the densities they were drawn from. From those, one batch serves every role
of a loss: weighted by p₀φ/q it is a sample of the target, by p₀ψ_t/q at each t one of π_t, by p₀/q one of p₀.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from twistlm import smc
from twistlm.divergences import proposal_samples
from twistlm.errors import ConfigError, ExactSamplesError, TrainingError
from twistlm.exact import Collection
from twistlm.logmath import ess, normalise
from twistlm.proposals import Proposal, base, twist_induced
from twistlm.registry import register
from twistlm.rng import Rng
from twistlm.twisted import TwistedLM
from twistlm.types import Potential, Samples, Scored


@dataclass(frozen=True)
class Setting:
    """What sources draw from.

    Attributes:
        model: base model and current twist.
        potential: φ, bound to the model.
        prompt: the prompt's tokens.
        num_steps: T.
        proposal: q_t of the sources that sample with the twist.
        collection: base draws set aside for training, with those accepted as exact; None if none were collected.
        num_siblings: K further draws of each token, for sources that draw afresh.
        joint: one exact sample for each of the conditions that this update's sequences are given, if targets differ.
    """

    model: TwistedLM
    potential: Potential
    prompt: Tensor
    num_steps: int
    proposal: Proposal = twist_induced
    collection: Collection | None = None
    num_siblings: int = 0
    joint: Samples | None = None

    def prompts(self) -> list[Tensor]:
        """One per target: the prompt, for each of the conditions if there are any."""
        return [self.prompt] * (1 if self.joint is None else len(self.joint))

    def each(self, count: int) -> int:
        """How many of `count` sequences each target gets, at least one."""
        return max(1, count // len(self.prompts()))

    @property
    def conditions(self) -> Tensor | None:
        """[R, c], or None."""
        return None if self.joint is None else self.joint.conditions


@dataclass(frozen=True)
class Batch:
    """Sequences with log weights towards σ.

    Attributes:
        samples: B sequences.
        log_w: log p₀φ/q up to a constant [B].
        log_ratio: log p₀(s_1:t)/q(s_1:t) [B, T]; None where only the target weights are known (SMC, exact samples).
        num_targets: R targets that the sequences belong to, equally many to each, one after the other: weights are
            normalised among those of one target.
    """

    samples: Samples
    log_w: Tensor
    log_ratio: Tensor | None
    num_targets: int = 1


Source = Callable[[Rng, Setting, int], Batch]


def independent(samples: Samples, num_targets: int = 1) -> Batch:
    """A batch of independent draws: importance weights without resampling."""
    log_ratio = (samples.log_p - samples.log_q).cumsum(-1)
    return Batch(samples, log_ratio[:, -1] + samples.log_phi, log_ratio, num_targets)


def _drawn(rng: Rng, setting: Setting, count: int, proposal: Proposal) -> Batch:
    samples = proposal_samples(
        rng, setting.model, setting.potential, prompts=setting.prompts(), num_samples=setting.each(count),
        num_steps=setting.num_steps, proposal=proposal, conditions=setting.conditions,
        record_features=setting.model.features_are_reusable, num_siblings=setting.num_siblings,
    )  # fmt: skip
    return independent(samples, len(setting.prompts()))


@register("source", "base")
def from_base(rng: Rng, setting: Setting, count: int) -> Batch:
    """Fresh draws from p₀, weighted by φ."""
    return _drawn(rng, setting, count, base)


@register("source", "proposal")
def from_proposal(rng: Rng, setting: Setting, count: int) -> Batch:
    """Fresh draws from the current proposal, by self-normalised importance weights."""
    return _drawn(rng, setting, count, setting.proposal)


@register("source", "smc", roles=("target",))
def from_smc(rng: Rng, setting: Setting, count: int) -> Batch:
    """Approximate target samples by SMC with the current twist."""
    result = smc.run(
        rng, setting.model, setting.potential, prompts=setting.prompts(), num_particles=setting.each(count),
        num_steps=setting.num_steps, proposal=setting.proposal, conditions=setting.conditions,
        record_features=setting.model.features_are_reusable,
    )  # fmt: skip
    samples = smc.to_samples(result, setting.prompts(), setting.model, setting.conditions)
    return Batch(samples, result.particles.log_w.flatten(), None, len(setting.prompts()))


@register("source", "draws")
def from_draws(rng: Rng, setting: Setting, count: int) -> Batch:
    """A random part of the base draws that collecting exact samples has paid for, weighted by φ."""
    if setting.joint is not None:
        raise ConfigError("source 'draws' knows one target only; for infilling use 'exact', 'proposal' or 'base'")
    draws = _collected(setting).draws
    order = rng.uniform((1, len(draws)))[0].argsort()[: min(count, len(draws))]
    return independent(draws.select(order))


@register("source", "exact", roles=("target",))
def from_exact(rng: Rng, setting: Setting, count: int) -> Batch:
    """A random part of the exact target samples, equally weighted; fresh ones where every base draw is exact."""
    if setting.joint is not None:
        weights = torch.zeros(len(setting.joint), dtype=torch.float64)
        return Batch(setting.joint, weights, None, len(setting.joint))
    samples = _collected(setting).exact.samples
    if len(samples) == 0:
        raise ExactSamplesError("source 'exact' needs exact samples for training, and none was accepted; collect more")
    order = rng.uniform((1, len(samples)))[0].argsort()[: min(count, len(samples))]
    chosen = samples.select(order)
    return Batch(chosen, torch.zeros(len(chosen), dtype=torch.float64), None)


def _collected(setting: Setting) -> Collection:
    if setting.collection is None:
        raise ConfigError("sources 'draws' and 'exact' need collected draws; run `twistlm collect`, or use 'proposal'")
    return setting.collection


# --- From a batch to what a loss sees ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scoring:
    """The batches that a loss asked for, by role, and the effective number of target samples among them."""

    scored: dict[str, Scored]
    ess: float


def score(model: TwistedLM, batches: dict[str, Batch], *, normaliser: bool) -> Scoring:
    """Score each role's batch with gradient; a batch that serves two roles is scored once.

    Siblings count where particles of π_t are wanted, unless the normaliser is wanted too: they have none.

    Raises:
        ConfigError: a batch without prefix weights was given for a role other than the target.
        TrainingError: no target sample has any weight.
    """
    with_siblings = batches["intermediate"] if "intermediate" in batches and not normaliser else None
    scores = {
        id(batch): model.score(
            batch.samples if batch is with_siblings else replace(batch.samples, siblings=None), normaliser=normaliser
        )
        for batch in batches.values()
    }
    made, effective = {}, float("nan")
    for role, batch in batches.items():
        found, samples = scores[id(batch)], batch.samples
        log_psi, mask = found.log_psi, samples.mask
        if role == "target":
            if not bool(batch.log_w.isfinite().any()):
                raise TrainingError(
                    "every target sample has weight zero (φ = 0); use more particles or a softer potential"
                )
            weights = _normalised(batch.log_w, batch.num_targets)
            effective = float(ess(batch.log_w.view(batch.num_targets, -1)).sum())
        elif role == "intermediate":
            log_psi, mask, weights = _towards_intermediate(batch, found.log_psi, found.siblings)
        elif role == "base":
            weights = _normalised(_ratio(batch), batch.num_targets)
        else:
            weights = torch.full((len(samples),), 1 / len(samples), dtype=torch.float64, device=log_psi.device)
        made[role] = Scored(
            mask=mask,
            weights=weights.to(log_psi.dtype),
            log_p=samples.log_p,
            log_q=samples.log_q,
            log_psi=log_psi,
            log_normaliser=found.log_normaliser,
            log_phi=samples.log_phi,
        )
    return Scoring(made, effective)


def _ratio(batch: Batch) -> Tensor:
    if batch.log_ratio is None:
        raise ConfigError(
            "this source gives target samples only; choose 'base', 'proposal' or 'draws' for the loss's other roles"
        )
    return batch.log_ratio


def _towards_intermediate(batch: Batch, log_psi: Tensor, siblings: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """log ψ, mask and self-normalised weights p₀ψ_t/q [B', T]; siblings count as particles of their prefix."""
    log_ratio = _ratio(batch)
    mask, log_w = batch.samples.mask, log_ratio + log_psi.detach()
    if siblings is not None and batch.samples.siblings is not None:
        # A sibling shares its prefix's ratio and has its own last factor; a finished prefix has no children.
        before = torch.nn.functional.pad(log_ratio, (1, 0))[:, :-1]
        log_w_siblings = before.unsqueeze(-1) + batch.samples.siblings.log_ratio + siblings.detach()
        log_w_siblings = torch.where(mask.unsqueeze(-1), log_w_siblings, log_w.unsqueeze(-1))
        siblings = torch.where(mask.unsqueeze(-1), siblings, log_psi.unsqueeze(-1))
        log_w = torch.cat([log_w.unsqueeze(-1), log_w_siblings], -1).transpose(1, 2).flatten(0, 1)
        log_psi = torch.cat([log_psi.unsqueeze(-1), siblings], -1).transpose(1, 2).flatten(0, 1)
        mask = mask.repeat_interleave(1 + siblings.shape[-1], 0)
    return log_psi, mask, _normalised(log_w, batch.num_targets)


def _normalised(log_w: Tensor, num_targets: int) -> Tensor:
    """Weights of sequences [B, …] that sum to 1/R for each of the R targets."""
    return normalise(log_w.unflatten(0, (num_targets, -1)), dim=1).flatten(0, 1) / num_targets
