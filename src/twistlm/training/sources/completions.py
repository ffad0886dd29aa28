"""Fresh ends for every prefix: what FUDGE learns from where the prefixes themselves come from elsewhere."""

from dataclasses import replace

import torch

from twistlm.core.errors import ConfigError
from twistlm.core.registry import register
from twistlm.core.rng import Rng
from twistlm.potentials.base import evaluate
from twistlm.sampling.cases import Case
from twistlm.training.sources import Batch, Setting, from_exact, from_proposal


@register("source", "completions", roles=("labelled",), alone=True)
def completions(rng: Rng, setting: Setting, count: int) -> Batch:
    """Prefixes of exact samples (the proposal's where there are none), each with φ of an end of its own from p₀.

    E_p₀[φ | s_1:t] is what every label estimates, whatever the prefix was drawn from, so prefixes may be those that
    matter: from p₀ itself hardly any sequence would meet its condition (Zhao et al. 2024, appendix on FUDGE). Costs
    T (T − 1) / 2 more tokens for each sequence.

    Raises:
        ConfigError: sequences end at EOS, so that some prefixes have no end to draw.
    """
    sampler = setting.sampler
    if sampler.model.absorbing is not None:
        raise ConfigError("source 'completions' needs sequences of a fixed length: set eos='ignore' (--eos ignore)")
    exact = setting.joint is not None or (setting.collection is not None and bool(setting.collection.accepted.any()))
    batch = (from_exact if exact else from_proposal)(rng, setting, count)
    samples, plain = batch.samples, replace(sampler.base, potential=None)
    potential, labels = sampler.potential, [samples.log_phi]
    assert potential is not None
    for length in range(sampler.num_steps - 1, 0, -1):
        prefixes = samples.tokens[:, :length]
        cases = [Case(torch.cat([prompt.to(row), row])) for prompt, row in zip(samples.prompts, prefixes, strict=True)]
        ends = replace(plain, num_steps=sampler.num_steps - length).draw_at_once(rng.fork("ends", length), cases, 1)
        whole = torch.cat([prefixes, ends.tokens], -1)
        labels.append(evaluate(potential, samples.prompts, whole, samples.conditions))
    log_phi = torch.stack(labels[::-1], -1)
    return Batch(
        replace(samples, log_phi=log_phi), torch.zeros(len(samples)), torch.zeros_like(log_phi), batch.num_targets
    )
