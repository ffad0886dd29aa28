"""A certificate in plain words: how close q is to σ, whether the sandwich closes, what is wrong, what it would take."""

import math
from dataclasses import dataclass

from twistlm.bounds import Bounds, main_bounds, width
from twistlm.certificate import Certificate
from twistlm.divergences import Divergences
from twistlm.estimates import Estimate

# A sandwich closes when log Z is known to half a nat, errors included: Z to a factor of 1.6.
CLOSED = 0.5
# A wider gap is not yet falling like 1/N.
FAR = 2.0
# Nats up to which q is called so. The worse of both directions decides, by the upper end of its interval.
CLOSENESS = (
    (0.1, "q is all but σ itself"),
    (1.0, "q is close to σ"),
    (3.0, "q is some way from σ"),
    (math.inf, "q is far from σ"),
)
# A mode is missed where KL(σ‖q) is surely so many times KL(q‖σ) and so many nats: both are alike near σ.
MODE_RATIO, MODE_NATS = 3.0, 0.5


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, in one line, and what to do about it, in another."""

    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.problem} Remedy: {self.remedy}"


def verdict(certificate: Certificate, before: Certificate | None = None) -> list[str]:
    """Sentences for someone who reads nothing else: the headline, the sandwich, what is wrong, what more would take.

    Args:
        certificate: of the sampler.
        before: of the base model on the same target, to compare with.
    """
    found = certificate.divergences
    lines = [_closeness(certificate), _sandwich(main_bounds(certificate.bounds))]
    if certificate.log_Z_source == "reference":
        lines[1] += f" Base draws alone give it more closely: {found.log_Z}."
    lines += [str(finding) for finding in findings(certificate, before)]
    if found.kl_target_q is not None and math.isfinite(found.kl_target_q.value):
        lines.append(_effort(found.kl_target_q, None if before is None else before.divergences.kl_target_q))
    return lines


def findings(certificate: Certificate, before: Certificate | None = None) -> list[Finding]:
    """What is wrong with a sampler; `before` is the base model's certificate on the same exact samples."""
    found = [_missed_mode(certificate.divergences)]
    if before is not None:
        found.append(_worse_than_none(certificate.divergences, before.divergences))
    return [each for each in found if each is not None]


def _missed_mode(found: Divergences) -> Finding | None:
    if not misses_mode(found):
        return None
    return Finding(
        "A mode is missed: KL(σ‖q) is far above KL(q‖σ), so what q writes looks right, but some of what σ would write "
        "hardly ever comes, and weights cannot bring back what is not proposed.",
        "train on exact samples (--source exact), or propose nearer to the base model (--proposal tempered:0.5).",
    )


def _worse_than_none(after: Divergences, base: Divergences) -> Finding | None:
    """By KL(σ‖q), or KL(q‖σ) where that is not known; only where the intervals are apart."""
    name, found, without = "KL(σ‖q)", after.kl_target_q, base.kl_target_q
    if found is None or without is None:
        name, found, without = "KL(q‖σ)", after.kl_q_target, base.kl_q_target
    if not found.low > without.high:
        return None
    return Finding(
        f"The twist is worse than none: {name} is {found} nats with it and {without} without.",
        "more draws (--num-draws), a lower --learning-rate or higher --weight-decay, or a smaller --twist.",
    )


def misses_mode(found: Divergences) -> bool:
    """Whether q surely leaves out a part of σ: KL(σ‖q) ≫ KL(q‖σ), by the nearer ends of their intervals."""
    missed = found.kl_target_q
    if missed is None or not math.isfinite(found.kl_q_target.high):
        return False
    return missed.low > MODE_NATS and missed.low > MODE_RATIO * found.kl_q_target.high


def _closeness(certificate: Certificate) -> str:
    found = certificate.divergences
    if found.kl_target_q is None:
        at_least = " at least" if certificate.log_Z_source == "lower bound only" else ""
        return (
            f"KL(q‖σ) is{at_least} {found.kl_q_target} nats. What q misses of σ is not known: that takes exact samples."
        )
    if math.isinf(found.kl_q_target.value):
        return f"q writes what σ never would (φ = 0): KL(q‖σ) is infinite; KL(σ‖q) = {found.kl_target_q} nats."
    best, worst = (
        _level(max(getattr(kl, end) for kl in (found.kl_q_target, found.kl_target_q))) for end in ("low", "high")
    )
    # Neighbours may be told apart by noise, and the worse is said; beyond that nothing is known.
    words = CLOSENESS[worst][1] if worst - best <= 1 else "How close q is to σ is not known"
    return f"{words}: KL(q‖σ) = {found.kl_q_target} and KL(σ‖q) = {found.kl_target_q} nats."


def _level(nats: float) -> int:
    return next(k for k, (limit, _) in enumerate(CLOSENESS) if nats <= limit)


def _sandwich(bounds: Bounds) -> str:
    """Whether log Z is known, and what would make it so."""
    if bounds.upper is None or bounds.gap is None:
        return (
            f"log Z is at least {bounds.lower}; there are no exact samples, hence no upper bound. They take a "
            "potential with a log_upper_bound, and enough --num-draws."
        )
    between = (
        f"log Z is between {bounds.lower.low:.2f} and {bounds.upper.high:.2f}, errors included "
        f"({bounds.method.upper()}, {bounds.num_particles} particles)"
    )
    wide = width(bounds)
    if wide <= CLOSED:
        return f"The sandwich closes: {between}."
    needs = []
    # Half of the allowance is for the gap, which falls like 1/N once N is large, half for errors: like 1/√runs.
    gap, errors = bounds.gap, wide - bounds.gap
    if gap > FAR:
        needs.append(f"a better q: a gap of {gap:.1f} is too wide to say how many particles would close it")
    elif gap > CLOSED / 2:
        particles = bounds.num_particles * 2 ** math.ceil(math.log2(gap / (CLOSED / 2)))
        needs.append(f"about {particles:,} particles, if the gap of {gap:.2f} goes on falling like 1/N")
    if errors > CLOSED / 2:
        times = (errors / (CLOSED / 2)) ** 2
        more = "many more" if math.isinf(times) else f"about {math.ceil(times):,} times as many"
        needs.append(f"{more} runs and exact samples")
    return f"The sandwich does not close: {between}. To know log Z to {CLOSED:g} nats takes {', and '.join(needs)}."


def _effort(kl_target_q: Estimate, base: Estimate | None) -> str:
    """How many particles importance sampling takes: about exp KL(σ‖q) (Chatterjee and Diaconis, 2018, theorem 1.1)."""
    line = f"To reach σ from q by weights takes in the order of exp KL(σ‖q) = {_count(kl_target_q.value)} particles"
    if base is not None and math.isfinite(base.value):
        line += f"; from the base model {_count(base.value)}"
    return f"{line}."


def _count(nats: float) -> str:
    # Beyond 10⁶ nobody counts; an estimate below 0 nats is noise around 0.
    return f"{math.exp(max(nats, 0.0)):,.0f}" if nats < math.log(1e6) else f"10^{nats / math.log(10):.0f}"
