"""Independent draws from a proposal, and how likely it was to draw what it is shown."""

from dataclasses import replace

from torch import Tensor

from twistlm.core.rng import Rng
from twistlm.models.base import Prompts
from twistlm.potentials.base import evaluate
from twistlm.potentials.protocol import Potential
from twistlm.sampling import smc
from twistlm.sampling.exact.collection import ExactSamples
from twistlm.sampling.proposals import Proposal, twist_induced
from twistlm.sampling.samples import Samples
from twistlm.sampling.twisted import TwistedLM


def proposal_samples(
    rng: Rng,
    model: TwistedLM,
    potential: Potential | None,
    *,
    prompts: Prompts,
    num_samples: int,
    num_steps: int,
    proposal: Proposal = twist_induced,
    conditions: Tensor | None = None,
    max_batch: int = 512,
    record_features: bool = False,
    num_siblings: int = 0,
    paused: Tensor | None = None,
) -> Samples:
    """`num_samples` independent draws from q for each of the prompts, in batches of about `max_batch` sequences.

    With `conditions` [R, c] for R prompts, the draws of each come one after the other. Without a potential φ = 1. φ is
    taken apart from SMC, which refuses a batch of which every sequence has φ = 0: here each stands for itself.
    `paused` [num_samples, T], for a single prompt: the steps at which each draws from p₀ instead of q.
    """

    def drawn(at: int, which: slice, count: int) -> Samples:
        given = None if conditions is None else conditions[which]
        resting = None if paused is None else paused[at : at + count].unsqueeze(0)
        result = smc.run(
            rng.fork("proposal", at), model, None, prompts=prompts[which], num_particles=count,
            num_steps=num_steps, proposal=proposal, ess_threshold=0.0, conditions=given,
            record_features=record_features, num_siblings=num_siblings, paused=resting,
        )  # fmt: skip
        samples = smc.to_samples(result, prompts[which], model, given)
        if potential is None:
            return samples
        log_phi = evaluate(potential, samples.prompts, samples.tokens, samples.conditions)
        return replace(samples, log_phi=log_phi.to(samples.log_p.device))

    if conditions is not None:
        size = max(1, max_batch // num_samples)
        return Samples.concatenate(
            [drawn(at, slice(at, at + size), num_samples) for at in range(0, len(prompts), size)]
        )
    group = max(1, max_batch // len(prompts))
    return Samples.concatenate(
        [drawn(at, slice(None), min(group, num_samples - at)) for at in range(0, num_samples, group)]
    )


def log_ratios(samples: Samples) -> Tensor:
    """r = log p₀φ − log q of each sequence [B]."""
    return (samples.log_p - samples.log_q).sum(-1) + samples.log_phi


def exact_log_ratios(model: TwistedLM, exact: ExactSamples, proposal: Proposal = twist_induced) -> Tensor:
    """r of each exact sample [m], with the q of `model`."""
    found = model.densities(exact.samples, proposal)
    return (found.log_p - found.log_q).sum(-1) + exact.samples.log_phi
