"""A certificate in plain words: how close q is to σ, how well log Z is known, what is wrong, what it would take."""

import math
from collections.abc import Sequence

from twistlm.certificates.bounds import Bounds, main_bounds, width
from twistlm.certificates.certificate import Certificate
from twistlm.certificates.divergences import Divergences
from twistlm.certificates.log_Z import Source
from twistlm.core.advice import coded
from twistlm.core.estimates import Estimate, plain
from twistlm.sampling.diagnostics import Finding

# log Z is known well enough to half a nat, errors included: Z to a factor of 1.6.
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
# From here on a lower end alone says something.
FAR_LEVEL = 2
# What a mean is over, and its interval counts how they differ.
SPREAD = {Source.PROMPTS: "prompts", Source.CONDITIONS: "conditions"}
# Prompts that are named.
WORST = 3
# A mode is missed where KL(σ‖q) is surely so many times KL(q‖σ) and so many nats: both are alike near σ.
MODE_RATIO, MODE_NATS = 3.0, 0.5


def verdict(certificate: Certificate, before: Certificate | None = None, smc: Sequence[Finding] = ()) -> list[str]:
    """Sentences for someone who reads nothing else, in one voice: what comes first silences what would contradict it.

    1. An alarm stands alone: nothing that rests on contradicting numbers is said.
    2. How close q is, as far as the intervals can tell.
    3. How well log Z is known, by all evidence; what would close the sandwich only where that is not well enough.
    4. What is wrong: with q, then with SMC.
    5. How many particles weights take, unless q is close (a small number would say nothing) or SMC itself has shown
       that its particles were too few.

    Args:
        certificate: of the sampler.
        before: of the base model on the same target, to compare with.
        smc: what is wrong with the samples that are shown (`twistlm.sampling.diagnostics.findings`).
    """
    if certificate.alarm:
        return [_alarm(certificate)]
    kls = certificate.divergences
    lines = [_closeness(certificate), _log_Z(certificate)]
    lines += [str(finding) for finding in (*findings(certificate, before), *smc)]
    missed = kls.kl_target_q
    if missed is not None and missed.is_known and not smc and missed.high > CLOSENESS[1][0]:
        lines.append(_effort(missed, None if before is None else before.divergences.kl_target_q))
    return lines + _prompts(certificate)


def _alarm(certificate: Certificate) -> str:
    if certificate.by_prompt and not any(each.certificate.alarm for each in certificate.by_prompt):
        # Of a set, an alarm that no prompt has given is of those that are not there.
        return coded(
            "TW302",
            f"Nothing is certified for all prompts together, for some are left out: {certificate.alarm}. Remedy: put "
            "right what is said of each and evaluate again, or take those prompts out of the set.",
        )
    return coded(
        "TW301",
        f"Nothing is certified, for two numbers contradict each other: {certificate.alarm}. Remedy: make sure that "
        "the draws are of this target and trained nothing, and draw again with another --seed.",
    )


def _prompts(certificate: Certificate) -> list[str]:
    """Over how many prompts the means are, and which are the worst."""
    counted = [each for each in certificate.by_prompt if each.is_met and each.counts]
    never = [each for each in certificate.by_prompt if not each.is_met]
    hardly = [each for each in certificate.by_prompt if each.is_met and not each.counts]
    lines = []
    if len(counted) > 1:
        lines.append(f"These are means over {len(counted)} prompts, with intervals that count how prompts differ.")
    elif counted and (never or hardly):
        lines.append(f"All of this is of one prompt, {counted[0].name}.")
    worst = sorted(counted, key=lambda each: -each.certificate.divergences.kl_q_target.value)[:WORST]
    named = [f"{each.name} ({_said('KL(q‖σ)', each.certificate.divergences.kl_q_target)})" for each in worst]
    if len(counted) > WORST:
        lines.append(f"The worst prompts are {', '.join(named)}.")
    for some, what in ((never, "no draw"), (hardly, "hardly a draw")):
        if some:
            shown = ", ".join(each.name for each in some[:WORST]) + (", …" if len(some) > WORST else "")
            left_out = ", and the means leave them out" if counted else ""
            line = f"At {len(some)} prompts {what} had φ > 0{left_out}: {shown}."
            if any(math.isfinite(each.certificate.divergences.log_Z.high) for each in some):
                line += " Their certificates say how large Z can be."
            lines.append(coded("TW312", line))
    return lines


def findings(certificate: Certificate, before: Certificate | None = None) -> list[Finding]:
    """What is wrong with a sampler; `before` is the base model's certificate on the same exact samples."""
    problems = [_missed_mode(certificate.divergences)]
    if before is not None:
        problems.append(_worse_than_none(certificate.divergences, before.divergences))
    return [each for each in problems if each is not None]


def _missed_mode(kls: Divergences) -> Finding | None:
    if not misses_mode(kls):
        return None
    return Finding(
        "A mode is missed: KL(σ‖q) is far above KL(q‖σ), so what q writes looks right, but some of what σ would write "
        "hardly ever comes, and weights cannot bring back what is not proposed.",
        "train on exact samples (--source exact), or propose nearer to the base model (--proposal tempered:0.5).",
        "TW307",
    )


def _worse_than_none(after: Divergences, base: Divergences) -> Finding | None:
    """By KL(σ‖q), or KL(q‖σ) where that is not known; only where the intervals are apart."""
    name, learned, without = "KL(σ‖q)", after.kl_target_q, base.kl_target_q
    if learned is None or without is None or not learned.is_known or not without.is_known:
        name, learned, without = "KL(q‖σ)", after.kl_q_target, base.kl_q_target
    if not learned.low > without.high:
        return None
    return Finding(
        f"The twist is worse than none: {name} is {learned} nats with it and {without} without.",
        "more draws (--num-draws), a lower --learning-rate or higher --weight-decay, or a smaller --twist.",
        "TW308",
    )


def misses_mode(kls: Divergences) -> bool:
    """Whether q surely leaves out a part of σ: KL(σ‖q) ≫ KL(q‖σ), by the nearer ends of their intervals."""
    missed = kls.kl_target_q
    if missed is None or not math.isfinite(kls.kl_q_target.high):
        return False
    return missed.low > MODE_NATS and missed.low > MODE_RATIO * kls.kl_q_target.high


def _closeness(certificate: Certificate) -> str:
    divergences = certificate.divergences
    if math.isinf(divergences.kl_q_target.value):
        beside = "" if divergences.kl_target_q is None else f" {_said('KL(σ‖q)', divergences.kl_target_q)}."
        return coded("TW306", f"q writes what σ never would (φ = 0): KL(q‖σ) is infinite.{beside}")
    if divergences.kl_target_q is None:
        seen = _said("KL(q‖σ)", divergences.kl_q_target)
        return coded("TW305", f"{seen}. What q misses of σ is not known: that takes exact samples.")
    kls = (divergences.kl_q_target, divergences.kl_target_q)
    best, worst = (_level(max(getattr(kl, end) for kl in kls)) for end in ("low", "high"))
    code, words = "TW304", "How close q is to σ is not known"
    if math.isinf(max(kl.high for kl in kls)):
        # Nothing limits how far: only that it is no nearer.
        if best >= FAR_LEVEL:
            code, words = "TW303", f"{CLOSENESS[best][1]}, if not farther"
    elif worst - best <= 1:
        # Neighbours may be told apart by noise, and the worse is said; beyond that nothing is known.
        code, words = "TW303" if worst >= FAR_LEVEL else "", CLOSENESS[worst][1]
    line = f"{words}: {_said('KL(q‖σ)', kls[0])} and {_said('KL(σ‖q)', kls[1])}."
    return coded(code, line) if code else line


def _said(name: str, kl: Estimate) -> str:
    """A KL as a statement, one-sided where no more is known."""
    if not kl.is_known:
        return f"{name} is not known"
    if math.isinf(kl.high):
        return f"{name} is at least {plain(kl.low)} nats"
    return f"{name} = {kl} nats"


def _level(nats: float) -> int:
    return next(k for k, (limit, _) in enumerate(CLOSENESS) if nats <= limit)


def _log_Z(certificate: Certificate) -> str:
    """How well log Z is known, and what would make it better known."""
    used, bounds = certificate.divergences.log_Z, main_bounds(certificate.bounds)
    if used.value == -math.inf:
        most = "Nothing is known of log Z" if math.isinf(used.high) else f"log Z is at most {plain(used.high)}"
        hardly = "hardly a" if any(each.is_met for each in certificate.by_prompt) else "no"
        return coded("TW311", f"{most}: {hardly} draw has shown φ > 0. It takes more base draws (--num-draws).")
    if math.isinf(used.high):
        return coded(
            "TW310",
            f"log Z is at least {plain(used.low)}; nothing limits it from above. That takes a potential with a "
            "log_upper_bound, or exact samples.",
        )
    known = f"log Z = {used} (mostly by {certificate.log_Z_source})"
    if (nats := used.high - used.low) <= CLOSED:
        return f"log Z is known to {plain(nats, 2 if nats >= 0.005 else used.digits())} nats: {known}."
    if (of := SPREAD.get(certificate.log_Z_source)) is not None:
        takes = f"That is how {of} differ, so it takes more {of}; draws hardly matter"
    else:
        other = "" if bounds.upper is None or bounds.gap is None else f", or {closing(bounds)}"
        takes = f"It takes more base draws (--num-draws){other}"
    return coded("TW309", f"log Z is not known to {CLOSED:g} nats: {known}. {takes}.")


def closing(bounds: Bounds) -> str:
    """What it takes for a sandwich to close."""
    assert bounds.gap is not None
    needs = []
    # Half of the allowance is for the gap, which falls like 1/N once N is large, half for errors: like 1/√runs.
    gap, errors = bounds.gap, width(bounds) - bounds.gap
    if gap > FAR:
        needs.append(f"a better q: a gap of {gap:.1f} is too wide to say how many particles would close it")
    elif gap > CLOSED / 2:
        particles = bounds.num_particles * 2 ** math.ceil(math.log2(gap / (CLOSED / 2)))
        needs.append(f"about {particles:,} particles, if the gap of {gap:.2f} goes on falling like 1/N")
    if errors > CLOSED / 2:
        times = (errors / (CLOSED / 2)) ** 2
        more = "many more" if math.isinf(times) else f"about {math.ceil(times):,} times as many"
        needs.append(f"{more} runs and exact samples")
    return ", and ".join(needs) or "more exact samples"


def _effort(kl_target_q: Estimate, base: Estimate | None) -> str:
    """How many particles importance sampling takes: about exp KL(σ‖q) (Chatterjee and Diaconis, 2018, theorem 1.1)."""
    line = f"To reach σ from q by weights takes in the order of exp KL(σ‖q) = {_counts(kl_target_q)} particles"
    return f"{line}; from the base model {_counts(base)}." if base is not None and base.is_known else f"{line}."


def _counts(kl: Estimate) -> str:
    """exp KL at both ends."""
    low, high = _count(kl.low), _count(kl.high)
    if math.isinf(kl.high):
        return f"at least {low}"
    return low if low == high else f"{low} to {high}"


def _count(nats: float) -> str:
    # Beyond 10⁶ nobody counts.
    if math.isinf(nats):
        return "∞"
    return f"{math.exp(max(nats, 0.0)):,.0f}" if nats < math.log(1e6) else f"10^{nats / math.log(10):.0f}"
