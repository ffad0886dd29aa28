"""How far a sampler is from the target, in both directions.

With r(s) = log p₀(s) φ(s) − log q(s): F = E_q[r] and G = E_σ[r], so that

    KL(q‖σ) = log Z − F,    KL(σ‖q) = G − log Z

(Zhao et al. 2024, section 5). F needs only samples of q; G needs exact samples of σ. An estimate of either KL carries
the log Z that it used: a sandwich's midpoint, whose width then counts in the interval, or a given reference.
"""

from dataclasses import dataclass

from torch import Tensor

from twistlm import smc
from twistlm.estimates import Estimate, difference, mean
from twistlm.exact import ExactSamples
from twistlm.proposals import Proposal, twist_induced
from twistlm.rng import Rng
from twistlm.twisted import TwistedLM
from twistlm.types import Potential, Prompts, Samples


@dataclass(frozen=True)
class Divergences:
    """KLs between q and σ with 95 % intervals, in nats.

    Attributes:
        kl_q_target: KL(q‖σ); sees what q does that σ would not.
        kl_target_q: KL(σ‖q); sees what q misses. None without exact samples.
        kl_q_prior: KL(q‖p₀).
        log_phi: E_q[log φ].
        phi: E_q[φ].
        log_Z: the log Z that both used.
        f: F = E_q[log p₀φ − log q], a lower bound on log Z.
        g: G = E_σ[log p₀φ − log q], an upper bound on it. None without exact samples.
    """

    kl_q_target: Estimate
    kl_target_q: Estimate | None
    kl_q_prior: Estimate
    log_phi: Estimate
    phi: Estimate
    log_Z: Estimate
    f: Estimate
    g: Estimate | None


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

    With `conditions` [R, c] for R prompts, the draws of each come one after the other. Without a potential φ = 1.
    `paused` [num_samples, T], for a single prompt: the steps at which each draws from p₀ instead of q.
    """

    def drawn(at: int, which: slice, count: int) -> Samples:
        given = None if conditions is None else conditions[which]
        resting = None if paused is None else paused[at : at + count].unsqueeze(0)
        result = smc.run(
            rng.fork("proposal", at), model, potential, prompts=prompts[which], num_particles=count,
            num_steps=num_steps, proposal=proposal, ess_threshold=0.0, conditions=given,
            record_features=record_features, num_siblings=num_siblings, paused=resting,
        )  # fmt: skip
        return smc.to_samples(result, prompts[which], model, given)

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


def divergences(drawn: Samples, exact_ratios: Tensor | None, log_Z: Estimate) -> Divergences:
    """Both KLs of a proposal.

    Args:
        drawn: independent samples of the proposal (`proposal_samples`).
        exact_ratios: `exact_log_ratios` of exact samples that took no part in training; None leaves KL(σ‖q) out.
        log_Z: reference with its interval.
    """
    f = mean(log_ratios(drawn))
    g = None if exact_ratios is None else mean(exact_ratios)
    return Divergences(
        kl_q_target=difference(log_Z, f),
        kl_target_q=None if g is None else difference(g, log_Z),
        kl_q_prior=mean((drawn.log_q - drawn.log_p).sum(-1)),
        log_phi=mean(drawn.log_phi),
        phi=mean(drawn.log_phi.exp()),
        log_Z=log_Z,
        f=f,
        g=g,
    )
