"""Certificates where the target differs by its condition: everything is a mean over conditions (infilling).

log Z varies between conditions far more than any divergence, so all is paired: the same conditions serve the sandwich,
F and G, and a KL's interval is that of the differences. With the sandwich of each condition c, ::

    E_c[lower − F_c] ≤ E_c KL(q‖σ) ≤ E_c[upper − F_c],    E_c[G_c − upper] ≤ E_c KL(σ‖q) ≤ E_c[G_c − lower].
"""

import time

from twistlm.certificates.bounds import Bounds, log_Z_bounds, main_bounds
from twistlm.certificates.certificate import Certificate
from twistlm.certificates.divergences import MIN_EXACT, Divergences, phi
from twistlm.certificates.evidence import FEWEST_EXACT, Evidence
from twistlm.certificates.log_Z import over_conditions
from twistlm.certificates.spending import Spending
from twistlm.core.errors import ConfigError, ExactSamplesError
from twistlm.core.estimates import mean, midpoint
from twistlm.core.progress import bar
from twistlm.core.rng import Rng
from twistlm.sampling.cases import in_shares, rows_of, shares_of
from twistlm.sampling.sampler import WorkerContext


def certify_paired(rng: Rng, here: WorkerContext, evidence: Evidence, spending: Spending) -> Certificate:
    """Certify a proposal over the conditions of exact samples, and SMC with it.

    Args:
        rng: source of randomness.
        here: what samples, and the prompts with their weights.
        evidence: exact samples, at least 2, one for each condition; they took no part in training.
        spending: what it may cost.

    Raises:
        ConfigError: there are no exact samples, the sampler is a model of its own, or a gap is asked for.
        ExactSamplesError: fewer than `FEWEST_EXACT` exact samples, or none at a prompt.
    """
    sampler, exact = here.sampler, evidence.exact
    if exact is None or spending.effort is not None or sampler.reference is not None:
        raise ConfigError(
            "a target that differs by its condition is certified for runs, on collected draws (num_draws above 0), "
            "and without a gap"
        )
    start = time.perf_counter()
    # As many conditions of each prompt as its share is, however few of them serve the sandwich.
    index = in_shares(rng.fork("prompts"), rows_of(exact.samples.prompts, here.cases), shares_of(here.cases))
    exact = exact.select(index[: spending.num_samples])
    if len(exact) < FEWEST_EXACT:
        raise ExactSamplesError(
            f"a certificate needs at least {FEWEST_EXACT} exact samples, of every prompt one, not {len(exact)}; raise "
            "--num-draws"
        )
    drawn = sampler.draw(rng.fork("samples"), exact.cases, 1)
    below, above = drawn.log_ratios, sampler.log_ratios(exact.samples)
    bounds: list[Bounds] = []
    counts = spending.num_particles
    cases = exact.cases[: spending.runs(max(counts))]
    with bar("bounds on log Z", len(counts)) as report:
        for done, n in enumerate(counts):
            for method in spending.methods:
                bounds.append(log_Z_bounds(rng.fork("bounds"), sampler, cases, n, method=method, exact=exact))
            report(done + 1, f"N = {n}")
    chosen = main_bounds(bounds)
    assert chosen.lowers is not None
    assert chosen.uppers is not None
    lower, upper = chosen.lowers, chosen.uppers
    f, g = below[: len(lower)], above[: len(lower)]
    ranges, decision = sampler.ranges, over_conditions(lower, upper)
    kls = Divergences(
        kl_q_target=midpoint(mean(lower - f), mean(upper - f)).as_divergence,
        kl_target_q=midpoint(mean(g - upper, least=MIN_EXACT), mean(g - lower, least=MIN_EXACT)).as_divergence,
        kl_q_prior=mean(drawn.log_q_over_p).as_divergence,
        log_phi=mean(drawn.log_phi, low=ranges.low, high=ranges.high),
        phi=phi(drawn.log_phi, ranges),
        log_Z=decision.log_Z,
        f=mean(below),
        g=mean(above),
    )
    spent = len(drawn) + sum(2 * b.num_particles * b.lower.n for b in bounds)
    return Certificate(
        bounds=tuple(bounds),
        divergences=kls,
        log_Z_source=decision.source,
        ess_fraction=None,
        num_sequences=spent,
        num_tokens=spent * sampler.num_steps,
        seconds=time.perf_counter() - start,
    )
