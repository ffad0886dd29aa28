"""Bounds and divergences against enumeration, and the coverage of their intervals."""

from dataclasses import replace

import pytest
import torch
from scipy import stats

from tests.cases import Case, TablePotential, make_case
from twistlm.certificates.bounds import _estimates, log_Z_bounds
from twistlm.certificates.divergences import divergences
from twistlm.certificates.log_Z import Source, Witness, decide
from twistlm.core.errors import ConfigError, ExactSamplesError
from twistlm.core.estimates import Estimate, difference, log_of_mean, mean
from twistlm.core.rng import Rng
from twistlm.core.storage import as_json, as_type
from twistlm.sampling.exact.budget import Budget
from twistlm.sampling.exact.collect import collect
from twistlm.sampling.exact.collection import ExactSamples
from twistlm.sampling.proposals import base, twist_induced
from twistlm.sampling.sampler import Sampler, WorkerContext
from twistlm.sampling.twisted import TwistedLM
from twistlm.testing import assert_mean
from twistlm.twists.tabular import TabularHead


def exact_of(case: Case, count: int, seed: int = 0) -> ExactSamples:
    collection = collect(
        Rng(seed),
        WorkerContext(Sampler(case.base, case.potential, case.num_steps), [case.at]),
        Budget(1_000_000, count, chunk=2000),
        target="t",
    )
    return collection.exact.take(count)


@pytest.mark.parametrize("method", ["iwae", "smc"])
def test_a_run_that_loses_all_its_particles_is_an_estimate_of_zero(case: Case, method: str) -> None:
    """It ended the whole certificate, though the mean of Ẑ needs it."""
    table = case.potential.table.clone()
    table[: len(table) * 3 // 4] = -torch.inf
    hard = replace(case, potential=TablePotential(table, case.potential.vocab_size))
    sampler, cases = Sampler(hard.twisted, hard.potential, hard.num_steps), [hard.at] * 4000
    bounds = log_Z_bounds(Rng(3), sampler, cases, 2, method=method)
    assert bounds.lower.value == bounds.lower.low == -torch.inf
    estimates = _estimates(Rng(3), replace(sampler, may_die=True, ess_threshold=1.0), cases, 2, None)
    assert 0.01 < float(estimates.isneginf().double().mean()) < 0.9
    assert_mean(estimates.exp(), float(hard.truth.log_Z.exp()))


@pytest.mark.parametrize("method", ["iwae", "smc"])
@pytest.mark.parametrize("num_particles", [1, 2, 8])
def test_bounds_hold_in_expectation(case: Case, method: str, num_particles: int) -> None:
    bounds = log_Z_bounds(
        Rng(0),
        Sampler(case.twisted, case.potential, 3),
        [case.at] * 2000,
        num_particles,
        method=method,
        exact=exact_of(case, 2000),
        batch=20_000,
    )
    log_z = float(case.truth.log_Z)
    assert bounds.lower.value < log_z + 2 * bounds.lower.half_width
    assert bounds.upper is not None
    assert bounds.upper.value > log_z - 2 * bounds.upper.half_width
    if num_particles == 1:
        # N = 1 is F and G themselves: enumeration gives the exact gaps.
        for found, kl in [
            (bounds.lower, -case.truth.kl_q_target(case.twisted)), (bounds.upper, case.truth.kl_target_q(case.twisted))
        ]:  # fmt: skip
            assert found.low - 2 * found.half_width < log_z + kl < found.high + 2 * found.half_width


@pytest.mark.parametrize("method", ["iwae", "smc"])
def test_sandwich_tightens_with_particles(case: Case, method: str) -> None:
    exact = exact_of(case, 1000)
    gaps = [
        log_Z_bounds(
            Rng(0),
            Sampler(case.twisted, case.potential, 3),
            [case.at] * 1000,
            n,
            method=method,
            exact=exact,
            batch=20_000,
        ).gap
        for n in (1, 4, 16)
    ]
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0


def test_exact_twist_closes_the_sandwich(case: Case) -> None:
    bounds = log_Z_bounds(Rng(0), Sampler(case.optimal, case.potential, 3), [case.at] * 5, 2, exact=exact_of(case, 5))
    assert bounds.gap == pytest.approx(0.0, abs=1e-12)
    assert bounds.lower.value == pytest.approx(float(case.truth.log_Z), abs=1e-12)


REPEATS = 400


def binomial_interval_contains(hits: int, repeats: int, rate: float) -> bool:
    interval = stats.binomtest(hits, repeats).proportion_ci(0.99, "exact")
    return bool(interval.low <= rate <= interval.high)


def covers(hits: int, repeats: int) -> bool:
    """Whether a rate of 95 % or more is not refuted."""
    return bool(stats.binomtest(hits, repeats).proportion_ci(0.99, "exact").high >= 0.95)


@pytest.mark.parametrize("proposal", [base, twist_induced], ids=["base", "twist_induced"])
def test_kl_intervals_cover_the_truth_at_the_stated_rate(proposal: object) -> None:
    case = make_case()
    truth = case.truth
    z = float(truth.log_Z)
    reference = Estimate(z, z, z, 1)
    exact = exact_of(case, REPEATS * 60)
    ratios = Sampler(case.twisted, None, 3, proposal).log_ratios(exact.samples)
    kl_q = truth.kl_q_target(case.twisted, proposal)
    kl_s = truth.kl_target_q(case.twisted, proposal)
    kl_p = truth.kl_q_prior(case.twisted, proposal)
    hits = torch.zeros(3, dtype=torch.long)
    for repeat in range(REPEATS):
        drawn = Sampler(case.twisted, case.potential, 3, proposal=proposal).draw(Rng(repeat), [case.at], 60)
        found = divergences(drawn, ratios[60 * repeat : 60 * repeat + 60], reference)
        intervals = [found.kl_q_target, found.kl_target_q, found.kl_q_prior]
        for k, (interval, kl) in enumerate(zip(intervals, [kl_q, kl_s, kl_p], strict=True)):
            hits[k] += interval.low <= kl <= interval.high
    # With sixty values Gaffke's limits are cautious.
    assert covers(int(hits[0]), REPEATS), hits
    assert covers(int(hits[1]), REPEATS), hits
    if proposal is base:
        assert found.kl_q_prior.value == pytest.approx(0.0, abs=1e-12)
    else:
        assert covers(int(hits[2]), REPEATS), hits


def test_intervals_cover_where_few_and_skewed_values_defeat_a_plain_one() -> None:
    """Ten log ratios of a bad proposal, skewness 1.5: KL(σ‖q) is in 95 % of our intervals, and not of ±1.96 errors."""
    case = make_case(4, 4, seed=6)
    generator = torch.Generator().manual_seed(77)
    log_psi = 3 * torch.randn(case.lm.table.shape, generator=generator, dtype=torch.float64)
    model = TwistedLM(case.lm, TabularHead.twist(log_psi), case.eos)
    log_sigma, kl = case.truth.log_sigma, case.truth.kl_target_q(model)
    index = torch.multinomial(log_sigma.exp(), REPEATS * 10, replacement=True, generator=generator)
    values = (log_sigma - case.truth.log_q(model))[index].view(REPEATS, 10)
    found = [mean(row) for row in values]
    covered = sum(each.low <= kl <= each.high for each in found)
    plain = int(((values.mean(1) - kl).abs() <= 1.96 * values.std(1) / 10**0.5).sum())
    assert covers(covered, REPEATS), covered
    assert not binomial_interval_contains(plain, REPEATS, 0.95), plain


def test_kl_with_an_estimated_sandwich_covers_at_least_at_the_stated_rate() -> None:
    case = make_case()
    truth = case.truth
    exact = exact_of(case, 200 * 40)
    hits = torch.zeros(2, dtype=torch.long)
    for repeat in range(200):
        mine = exact.take(40, 40 * repeat)
        bounds = log_Z_bounds(Rng(repeat), Sampler(case.twisted, case.potential, 3), [case.at] * 20, 16, exact=mine)
        drawn = Sampler(case.twisted, case.potential, 3).draw(Rng(repeat), [case.at], 60)
        assert bounds.lowers is not None
        log_Z = decide([Witness(Source.SMC, bounds.lowers, bounds.uppers)]).log_Z
        found = divergences(drawn, Sampler(case.twisted, None, 3).log_ratios(mine.samples), log_Z)
        hits[0] += found.kl_q_target.low <= truth.kl_q_target(case.twisted) <= found.kl_q_target.high
        hits[1] += found.kl_target_q.low <= truth.kl_target_q(case.twisted) <= found.kl_target_q.high
    # Its limits hold whatever the weights may be, so coverage may only be higher.
    assert all(covers(count, 200) for count in hits.tolist()), hits


def test_intervals_of_estimates() -> None:
    values = torch.linspace(-3.0, 3.0, 400)
    found = mean(values)
    expected = stats.t.interval(0.95, 399, 0.0, stats.sem(values.numpy()))
    # Gaffke's limit allows for values that were not seen, as bad as the worst.
    assert expected[1] < found.high < 1.1 * expected[1]
    assert found.low == pytest.approx(-found.high)
    assert mean(torch.tensor([1.0])).high == float("inf")
    assert difference(found, found).half_width == pytest.approx(found.half_width * 2**0.5)
    log_values = torch.randn(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 700
    assert log_of_mean(log_values).low < -699.5 < log_of_mean(log_values).high
    endless = difference(found, mean(torch.tensor([0.0, -torch.inf])))
    assert (endless.value, endless.low, endless.high) == (torch.inf, -torch.inf, torch.inf)
    assert as_type(Estimate, as_json(endless), "it") == endless
    assert as_type(Estimate, as_json(mean(torch.tensor([1.0]))), "it") == mean(torch.tensor([1.0]))
    with pytest.raises(ConfigError, match="NaN"):
        mean(torch.tensor([1.0, float("nan")]))


def test_upper_bounds_need_exact_samples(case: Case) -> None:
    lower = log_Z_bounds(Rng(0), Sampler(case.twisted, case.potential, 3), [case.at] * 4, 2)
    assert lower.upper is None
    assert lower.gap is None
    with pytest.raises(ExactSamplesError, match="need as many exact samples, and there are 3"):
        log_Z_bounds(Rng(0), Sampler(case.twisted, case.potential, 3), [case.at] * 4, 2, exact=exact_of(case, 3))
    with pytest.raises(ConfigError, match="iwae, smc"):
        log_Z_bounds(Rng(0), Sampler(case.twisted, case.potential, 3), [case.at] * 4, 2, method="ais")


def test_log_z_hat_is_unbiased_in_the_helper_too(case: Case) -> None:
    drawn = Sampler(case.twisted, case.potential, 3).draw(Rng(1), [case.at], 3000, batch=700)
    ratios = (drawn.log_p - drawn.log_q).sum(-1) + drawn.log_phi
    assert_mean(ratios.exp(), float(case.truth.log_Z.exp()))
