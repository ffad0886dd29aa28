"""Certificates where the target differs by its condition: everything is a mean over conditions (infilling).

log Z varies between conditions far more than any divergence, so all is paired: the same conditions serve the sandwich,
F and G, and a KL's interval is that of the differences. With the sandwich of each condition c,

    E_c[lower − F_c] ≤ E_c KL(q‖σ) ≤ E_c[upper − F_c],    E_c[G_c − upper] ≤ E_c KL(σ‖q) ≤ E_c[G_c − lower].
"""

import time
from collections.abc import Sequence

from twistlm.certificates.bounds import METHODS, Bounds, main_bounds
from twistlm.certificates.certificate import Certificate
from twistlm.certificates.divergences import MIN_EXACT, Divergences, phi
from twistlm.certificates.log_Z import Source
from twistlm.certificates.subject import Subject
from twistlm.core.errors import ExactSamplesError
from twistlm.core.estimates import mean, midpoint
from twistlm.core.progress import bar
from twistlm.core.rng import Rng
from twistlm.sampling.exact.collection import ExactSamples
from twistlm.sampling.sampler import exact_log_ratios, log_ratios


def certify_conditional(
    rng: Rng, subject: Subject, exact: ExactSamples, *, num_particles: Sequence[int], num_samples: int, budget: int,
    methods: Sequence[str] = METHODS,
) -> Certificate:  # fmt: skip
    """Certify a proposal over the conditions of exact samples, and SMC with it.

    Args:
        rng: source of randomness.
        subject: model, potential, prompt, proposal.
        exact: one exact sample for each condition; they took no part in training.
        num_particles: N of the sandwiches.
        num_samples: conditions at most, with one proposal sample each.
        budget: sequences spent on each bound at the largest N: budget / N conditions, at least 2, which serve every N
            so that bounds at different N are of the same mean.
        methods: of the sandwiches.

    Raises:
        ExactSamplesError: fewer than 2 exact samples.
    """
    if len(exact) < 2:
        raise ExactSamplesError(f"a certificate needs at least 2 conditions, not {len(exact)}; raise --num-draws")
    start = time.perf_counter()
    exact = exact.take(min(len(exact), num_samples))
    conditions = exact.samples.conditions
    assert conditions is not None
    drawn = subject.draw_given(rng.fork("samples"), conditions)
    below, above = log_ratios(drawn), exact_log_ratios(subject.model, exact, subject.proposal)
    bounds: list[Bounds] = []
    runs = max(2, budget // max(num_particles))
    with bar("bounds on log Z", len(num_particles)) as report:
        for done, n in enumerate(num_particles):
            bounds += [subject.bounds(rng.fork("bounds"), exact, n, runs, method) for method in methods]
            report(done + 1, f"N = {n}")
    chosen = main_bounds(bounds)
    assert chosen.lowers is not None
    assert chosen.uppers is not None
    lower, upper = chosen.lowers, chosen.uppers
    f, g = below[: len(lower)], above[: len(lower)]
    found = Divergences(
        kl_q_target=midpoint(mean(lower - f), mean(upper - f)).as_divergence,
        kl_target_q=midpoint(mean(g - upper, least=MIN_EXACT), mean(g - lower, least=MIN_EXACT)).as_divergence,
        kl_q_prior=mean((drawn.log_q - drawn.log_p).sum(-1)).as_divergence,
        log_phi=mean(drawn.log_phi, low=subject.ranges.low, high=subject.ranges.high),
        phi=phi(drawn.log_phi, subject.ranges),
        log_Z=midpoint(mean(lower), mean(upper)),
        f=mean(below),
        g=mean(above),
    )
    spent = len(drawn) + sum(2 * b.num_particles * b.lower.n for b in bounds)
    return Certificate(
        bounds=tuple(bounds),
        divergences=found,
        log_Z_source=Source.CONDITIONS,
        ess_fraction=None,
        num_sequences=spent,
        num_tokens=spent * subject.num_steps,
        seconds=time.perf_counter() - start,
    )
