"""How far a sampler is from the target, in both directions.

With r(s) = log p₀(s) φ(s) − log q(s): F = E_q[r] and G = E_σ[r], so that ::

    KL(q‖σ) = log Z − F,    KL(σ‖q) = G − log Z

(Zhao et al. 2024, equation 23). F needs only samples of q; G needs exact samples of σ. An estimate of either KL carries
the log Z that it used (`twistlm.certificates.log_Z`), whose interval counts in its own.
"""

import math
from dataclasses import dataclass, replace

from torch import Tensor

from twistlm.core.estimates import CONFIDENCE, Estimate, difference, exactly, log_of_mean, mean
from twistlm.core.logmath import exp
from twistlm.sampling.ranges import Ranges
from twistlm.sampling.samples import Samples

# Fewer exact samples than this do not limit KL(σ‖q) from above, unless the weights have a bound.
MIN_EXACT = 20


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


def divergences(
    drawn: Samples,
    exact_ratios: Tensor | None,
    log_Z: Estimate,
    ranges: Ranges | None = None,
) -> Divergences:
    """Both KLs of a proposal.

    What was never drawn is limited by what is known. Under q the mean of exp r is Z, so that r is hardly above
    log Z + log n anywhere that n draws can miss; under σ the mean of exp −r is 1/Z. From the other side r has the
    bounds of φ where q = p₀; else what was never seen is taken to be no worse than the worst that was, which for
    KL(σ‖q) fewer than `MIN_EXACT` exact samples cannot say.

    Args:
        drawn: independent samples of the proposal (`Sampler.draw`).
        exact_ratios: `Sampler.log_ratios` of exact samples that took no part in training; None leaves KL(σ‖q) out.
        log_Z: reference with its interval.
        ranges: what is known of φ and of r by definition.
    """
    known = ranges or Ranges()
    f, g = sides(drawn, exact_ratios, log_Z, known)
    return Divergences(
        kl_q_target=difference(log_Z, f).as_divergence,
        kl_target_q=None if g is None else difference(g, log_Z).as_divergence,
        kl_q_prior=exactly(0.0, len(drawn)) if known.is_base else mean(drawn.log_q_over_p).as_divergence,
        log_phi=mean(drawn.log_phi, low=known.low, high=known.high),
        phi=phi(drawn.log_phi, known),
        log_Z=log_Z,
        f=f,
        g=g,
    )


def withheld(kls: Divergences) -> Divergences:
    """The same without a statement about log Z or either KL to the target: nothing limits them."""

    def unknown(estimate: Estimate) -> Estimate:
        return Estimate(estimate.value, -math.inf, math.inf, estimate.n)

    missed = None if kls.kl_target_q is None else unknown(kls.kl_target_q)
    return replace(kls, log_Z=unknown(kls.log_Z), kl_q_target=unknown(kls.kl_q_target), kl_target_q=missed)


def sides(
    drawn: Samples, exact_ratios: Tensor | None, log_Z: Estimate, ranges: Ranges, level: float = CONFIDENCE
) -> tuple[Estimate, Estimate | None]:
    """F, and G where there are exact samples; arguments as for `divergences`."""
    above = [log_Z.high + math.log(len(drawn)), math.inf if ranges.ratio_high is None else ranges.ratio_high]
    most = min(above) if math.isfinite(min(above)) else None
    f = mean(drawn.log_ratios, low=_least_ratio(drawn, ranges), high=most, level=level)
    if exact_ratios is None:
        return f, None
    g = mean(exact_ratios, high=ranges.ratio_high, least=MIN_EXACT, level=level)
    # The share of σ that m exact samples may have missed bears no r below log Z + log share.
    unseen = 1.0 - ((1.0 - level) / 2) ** (1.0 / exact_ratios.numel())
    least = max(log_Z.low + math.log(unseen), -math.inf if ranges.ratio_low is None else ranges.ratio_low)
    return f, replace(g, low=max(g.low, mean(exact_ratios, low=least, level=level).low))


def _least_ratio(drawn: Samples, ranges: Ranges) -> float | None:
    """What r is not below: φ's bound, with the least p₀/q that was seen."""
    if ranges.is_base or ranges.low is None:
        return ranges.ratio_low
    return ranges.low + float((drawn.log_p - drawn.log_q).sum(-1).min())


def phi(log_phi: Tensor, ranges: Ranges) -> Estimate:
    """E_q[φ] from log φ of independent samples [n]."""
    low, high = ends_of_phi(ranges)
    if high is not None:
        return mean(log_phi.exp(), low=low, high=high)
    log_mean = log_of_mean(log_phi, low=-math.inf if ranges.low is None else ranges.low)
    return Estimate(exp(log_mean.value), exp(log_mean.low), exp(log_mean.high), log_mean.n)


def ends_of_phi(ranges: Ranges) -> tuple[float, float | None]:
    """What φ is not below and not above; None for the latter where it has no bound that a number can hold."""
    high = math.inf if ranges.high is None else exp(ranges.high)
    return 0.0 if ranges.low is None else exp(ranges.low), high if math.isfinite(high) else None
