"""What an update learns from: sequences at some of the prompts, from each loss's sources."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from twistlm.core.logmath import log_mean_exp
from twistlm.core.rng import Rng
from twistlm.sampling.cases import Cases, emphases_of, rows_of, shares_of
from twistlm.sampling.exact.collect import base_draws
from twistlm.sampling.resampling import invert, stratified_points
from twistlm.sampling.smc import Keep
from twistlm.sampling.twisted import TwistedLM
from twistlm.training.config import TrainingConfig
from twistlm.training.losses import finite
from twistlm.training.sources import Batch, Setting, collected_joint, get_source, marked


def drawn(rng: Rng, config: TrainingConfig, setting: Setting, cases: Cases, roles: Sequence[str]) -> dict[str, Batch]:
    """A batch for each role of a loss; roles with one source share one batch.

    Args:
        rng: of this update.
        config: the sources, and how many sequences.
        setting: what they draw from.
        cases: the prompts that all of them can serve.
        roles: of the loss.
    """
    made: dict[str, Batch] = {}
    setting = replace(setting, targets=some_of(rng.fork("targets"), cases, config.num_cases))
    weights = emphases_of(setting.targets)
    if setting.sampler.is_conditional:
        # All roles of an update are given the same conditions.
        each, keep = max(1, config.num_cases // len(setting.targets)), Keep(setting.keep.features)
        if config.draws_from("draws"):
            joint = collected_joint(rng.fork("conditions"), setting, each)
        else:
            joint = base_draws(rng.fork("conditions"), setting.sampler, setting.targets, each, keep)
        setting = replace(setting, joint=joint)
        # As many conditions of each prompt, one prompt's after the other's.
        weights = None if weights is None else weights.repeat_interleave(len(joint) // len(weights))
    sources = {role: config.source_of(role) for role in roles}
    for name in sources.values():
        if name not in made:
            count = config.pool_batch if marked(name, "pooled") else config.num_particles
            batch = get_source(name)(rng.fork(name), setting, count)
            batch = batch if config.max_share == 1 else batch.truncated(config.max_share)
            # Of others the proposal that they came from may be far away, or not known.
            made[name] = replace(batch, baseline=config.baseline and name == "proposal", target_weights=weights)
    return {role: made[name] for role, name in sources.items()}


def steps(rng: Rng, batches: dict[str, Batch], epochs: int, num_minibatches: int) -> Iterator[dict[str, Batch]]:
    """What each step of an update learns from: every sequence once in an epoch, in so many parts.

    Roles with one batch share its parts; of several, that with the fewest parts says how many steps there are.
    """
    distinct = {id(batch): batch for batch in batches.values()}
    for epoch in range(epochs):
        parts = [b.parts(rng.fork(epoch, k), num_minibatches) for k, b in enumerate(distinct.values())]
        for some in zip(*parts, strict=False):
            part_of = dict(zip(distinct, some, strict=True))
            yield {role: part_of[id(batch)] for role, batch in batches.items()}


def scale(batch: Batch) -> float:
    """log of a constant ψ near the mean of the optimal one, which is Z (of each target, where they differ).

    From ψ = 1 whatever was drawn would fall behind all that was not, and the proposal run after rare tokens until it
    has seen them all.
    """
    levels = log_mean_exp(finite(batch.samples.log_phi).view(batch.num_targets, -1))
    return float((levels if batch.target_weights is None else levels * batch.target_weights.to(levels)).mean())


@torch.no_grad()
def is_constant(model: TwistedLM, batch: Batch) -> bool:
    """Whether the twist says the same of every prefix, as it does before it has learned anything."""
    assert model.twist is not None
    log_psi = model.twist.head.gather(model.twist_features(batch.samples), batch.samples.tokens)
    return bool((log_psi == log_psi.flatten()[0]).all())


def served(config: TrainingConfig, setting: Setting) -> Cases:
    """The prompts that every source can serve: those with draws, or exact samples, if such are trained on."""
    collection, cases = setting.collection, setting.targets
    exact = config.draws_from("exact", "completions")
    if collection is None or len(cases) == 1 or not (exact or config.draws_from("draws")):
        return cases
    there = (collection.exact.samples if exact else collection.draws).prompts
    found = [case for case, rows in zip(cases, rows_of(there, cases), strict=True) if len(rows)]
    return found or cases


def some_of(rng: Rng, cases: Cases, count: int) -> Cases:
    """Some of the prompts, by their weights and stratified; all of them where they are few.

    Of different weights each comes once, with the weight that it is to count by: all of its sequences then speak for
    each other, and not those of one copy at a time.
    """
    if len(cases) <= count:
        return cases
    index = invert(shares_of(cases).unsqueeze(0), stratified_points(rng, 1, count))[0]
    if emphases_of(cases) is None:
        return [cases[r] for r in index.tolist()]
    chosen, copies = index.unique(return_counts=True)
    return [replace(cases[r], weight=float(n)) for r, n in zip(chosen.tolist(), copies.tolist(), strict=True)]
