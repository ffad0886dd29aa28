"""Fresh ends for every prefix: what FUDGE learns from where the prefixes themselves come from elsewhere."""

from dataclasses import replace

import torch

from twistlm.core.errors import ConfigError
from twistlm.core.registry import register
from twistlm.core.rng import Rng
from twistlm.potentials.base import evaluate
from twistlm.sampling import smc
from twistlm.sampling.proposals import base
from twistlm.sampling.twisted import TwistedLM
from twistlm.training.sources import Batch, Setting, from_exact, from_proposal


@register("source", "completions", roles=("labelled",))
def completions(rng: Rng, setting: Setting, count: int) -> Batch:
    """Prefixes of exact samples (the proposal's where there are none), each with φ of an end of its own from p₀.

    E_p₀[φ | s_1:t] is what every label estimates, whatever the prefix was drawn from, so prefixes may be those that
    matter: from p₀ itself hardly any sequence would meet its condition (Zhao et al. 2024, appendix on FUDGE). Costs
    T (T − 1) / 2 more tokens for each sequence.

    Raises:
        ConfigError: sequences end at EOS, so that some prefixes have no end to draw.
    """
    model = setting.model
    if model.absorbing is not None:
        raise ConfigError("source 'completions' needs sequences of a fixed length: set eos='ignore'")
    exact = setting.joint is not None or (setting.collection is not None and bool(setting.collection.accepted.any()))
    batch = (from_exact if exact else from_proposal)(rng, setting, count)
    samples = batch.samples
    plain = TwistedLM(model.lm, None, model.eos)
    labels = [samples.log_phi]
    for length in range(setting.num_steps - 1, 0, -1):
        prefixes = samples.tokens[:, :length]
        prompts = [torch.cat([prompt, row]) for prompt, row in zip(samples.prompts, prefixes, strict=True)]
        ends = smc.run(
            rng.fork("ends", length), plain, None, prompts=prompts, num_particles=1,
            num_steps=setting.num_steps - length, proposal=base, ess_threshold=0.0,
        )  # fmt: skip
        whole = torch.cat([prefixes, ends.particles.tokens[:, 0]], -1)
        labels.append(evaluate(setting.potential, samples.prompts, whole, samples.conditions))
    log_phi = torch.stack(labels[::-1], -1)
    return Batch(
        replace(samples, log_phi=log_phi), torch.zeros(len(samples)), torch.zeros_like(log_phi), batch.num_targets
    )
