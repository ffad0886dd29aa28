"""Certificates over prompts, on tabular models whose divergences are known by enumeration."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch

from tests.cases import Case, TablePotential
from twistlm.certificates.certificate import Certificate
from twistlm.certificates.evidence import Evidence, acceptance
from twistlm.certificates.log_Z import of_draws
from twistlm.certificates.over_prompts import _between, _mean, _Weights, certify_prompts
from twistlm.certificates.spending import Spending
from twistlm.certificates.verdict import verdict
from twistlm.core.errors import NoneAcceptedError
from twistlm.core.rng import Rng
from twistlm.core.storage import as_json, as_type
from twistlm.models.tabular import TabularLM
from twistlm.sampling.exact.budget import Budget
from twistlm.sampling.exact.collect import collect
from twistlm.sampling.sampler import Sampler, WorkerContext

STEPS, SPENDING = 2, Spending((4,), num_samples=8, budget=8, methods=("iwae",))
PROMPTS = [torch.tensor(tokens) for tokens in ([0], [1], [2], [0, 1], [1, 2], [2, 0], [0, 2], [1, 0], [2, 1], [1, 1])]


@pytest.fixture(scope="module")
def several() -> list[Case]:
    lm = TabularLM.random(3, 4, seed=5)
    table = (torch.randn(9, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * 2 - 3).clamp_max(-0.1)
    potential = TablePotential(table, 3)
    object.__setattr__(potential, "log_upper_bound", 0.0)
    return [Case(lm, potential, prompt, STEPS, "ignore") for prompt in PROMPTS]


def certificate(
    several: list[Case], seed: int, spending: Spending = SPENDING, each: int = 60, weights: list[float] | None = None
) -> Certificate:
    sampler, cases = Sampler(several[0].twisted, several[0].potential, STEPS), [case.at for case in several]
    if weights is not None:
        cases = [replace(case, weight=weight) for case, weight in zip(cases, weights, strict=True)]
    budget = Budget(each * len(cases), chunk=80)
    try:
        draws = collect(Rng(seed, ("draws",)), WorkerContext(sampler, cases), budget, target="t")
    except NoneAcceptedError as error:
        draws = error.collection
    rest, evaluation = draws.split((0.5, 0.5))
    evidence = []
    for case in cases:
        here = evaluation.at([case])
        exact = here.exact if len(here.exact) else None
        evidence.append(Evidence(exact, (of_draws(rest.at([case]).draws.log_phi, 0.0),), acceptance(here)))
    names = [str(r) for r in range(len(cases))]
    return certify_prompts(Rng(seed), WorkerContext(sampler, cases), names, evidence, spending)


def test_intervals_of_the_means_hold_the_truth(several: list[Case]) -> None:
    """Eight samples of q and thirty base draws a prompt, too few for any prompt alone; prompts are the same each time.

    So the spread over prompts only widens the intervals, and the truth may be missed by chance less than 1 in 20 times.
    """
    model, held = several[0].twisted, {"q": 0, "sigma": 0, "log_Z": 0}
    truth = {
        "q": sum(case.truth.kl_q_target(model) for case in several) / len(several),
        "log_Z": sum(float(case.truth.log_Z) for case in several) / len(several),
    }
    for seed in range(40):
        found = certificate(several, seed)
        kls = found.divergences
        held["q"] += kls.kl_q_target.low <= truth["q"] <= kls.kl_q_target.high
        held["log_Z"] += kls.log_Z.low <= truth["log_Z"] <= kls.log_Z.high
        exact = [each for each in found.by_prompt if each.certificate.acceptance is not None]
        assert len(exact) == len(several)
        held["sigma"] += kls.kl_target_q is not None
    assert held["q"] >= 35
    assert held["log_Z"] >= 35


def test_with_many_draws_the_means_are_the_truth(several: list[Case]) -> None:
    model, spending = several[0].twisted, Spending((4,), num_samples=4000, budget=8, methods=("iwae",))
    found = certificate(several, 3, spending, 4000)
    kls = found.divergences
    assert kls.kl_q_target.value == pytest.approx(
        sum(case.truth.kl_q_target(model) for case in several) / len(several), abs=0.05
    )
    assert kls.kl_target_q is not None
    assert kls.kl_target_q.value == pytest.approx(
        sum(case.truth.kl_target_q(model) for case in several) / len(several), abs=0.1
    )
    assert kls.kl_target_q.low < kls.kl_target_q.value < kls.kl_target_q.high
    for case, each in zip(several, found.by_prompt, strict=True):
        assert each.certificate.divergences.log_Z.value == pytest.approx(float(case.truth.log_Z), abs=0.2)


def test_means_are_by_the_weights_of_the_prompts_in_both_directions(several: list[Case]) -> None:
    model, spending = several[0].twisted, Spending((4,), num_samples=4000, budget=8, methods=("iwae",))
    weights = [1.0] * (len(several) - 1) + [30.0]
    found = certificate(several, 3, spending, 4000, weights).divergences
    for name in ("kl_q_target", "kl_target_q"):
        truths = [getattr(case.truth, name)(model) for case in several]
        by_weight = sum(w * x for w, x in zip(weights, truths, strict=True)) / sum(weights)
        assert getattr(found, name).value == pytest.approx(by_weight, abs=0.05)
        assert abs(by_weight - sum(truths) / len(truths)) > 0.1


def test_a_prompt_whose_phi_is_never_met_is_left_out_and_named(several: list[Case]) -> None:
    table = several[0].potential.table.clone()

    class Never(TablePotential):
        def log_phi(self, prompts, tokens):  # type: ignore[no-untyped-def]
            never = torch.tensor([prompt.equal(PROMPTS[0]) for prompt in prompts])
            return super().log_phi(prompts, tokens).masked_fill(never, -torch.inf)

    never = Never(table, 3)
    object.__setattr__(never, "log_upper_bound", 0.0)
    found = certificate([replace(case, potential=never) for case in several], 1)
    assert not found.by_prompt[0].is_met
    assert found.by_prompt[0].certificate.divergences.log_Z.high < -1.0
    assert found.divergences.log_Z.low > -20
    lines = verdict(found)
    assert any("At 1 prompts no draw had φ > 0" in line and ": 0." in line for line in lines)


class Sometimes(TablePotential):
    """φ is 1 for one of nine texts and 0 for the others; never after the prompts that are `without`."""

    without: tuple[int, ...] = ()

    def log_phi(self, prompts, tokens):  # type: ignore[no-untyped-def]
        hit = (tokens == torch.tensor([1, 2])).all(-1)
        possible = torch.tensor([not any(prompt.equal(PROMPTS[k]) for k in self.without) for prompt in prompts])
        return torch.where(hit & possible, 0.0, -torch.inf).double()


def sometimes(several: list[Case], *without: int) -> list[Case]:
    hard = Sometimes(several[0].potential.table, 3)
    object.__setattr__(hard, "log_upper_bound", 0.0)
    object.__setattr__(hard, "without", without)
    return [replace(case, potential=hard) for case in several]


def test_prompts_with_few_events_are_counted_with_the_others(several: list[Case]) -> None:
    """A group of four without an event has log Ẑ = −∞, and dropped its prompt: those with many remained."""
    rare, spending = sometimes(several), Spending((4,), num_samples=64, budget=8, methods=("iwae",))
    truth, held = sum(float(case.truth.log_Z) for case in rare) / len(rare), 0
    for seed in range(20):
        found = certificate(rare, seed, spending, each=200)
        assert all(each.is_met for each in found.by_prompt)
        held += found.divergences.log_Z.low <= truth <= found.divergences.log_Z.high
    assert held >= 17


class Mixed(Sometimes):
    """φ is 1 for a third of the texts after three of the prompts, and for one of nine after the others."""

    def log_phi(self, prompts, tokens):  # type: ignore[no-untyped-def]
        common = torch.tensor([any(prompt.equal(each) for each in PROMPTS[:3]) for prompt in prompts])
        often = torch.where(tokens[:, 0] == 1, 0.0, -torch.inf).double()
        return torch.where(common, often, super().log_phi(prompts, tokens))


def test_prompts_are_not_counted_for_the_luck_of_a_draw(several: list[Case]) -> None:
    """Those that were met once had an estimate of one in so many draws, however rare they are."""
    mixed = Mixed(several[0].potential.table, 3)
    object.__setattr__(mixed, "log_upper_bound", 0.0)
    cases = [replace(case, potential=mixed) for case in several]
    spending, held, lines = Spending((4,), num_samples=8, budget=8, methods=("iwae",)), 0, list[str]()
    for seed in range(20):
        found = certificate(cases, seed, spending, each=8)
        counted = [case for case, each in zip(cases, found.by_prompt, strict=True) if each.counts]
        truth = sum(float(case.truth.log_Z) for case in counted) / len(counted)
        held += found.divergences.log_Z.low <= truth <= found.divergences.log_Z.high
        lines += verdict(found)
        again = as_type(Certificate, as_json(found), "it")
        assert [each.counts for each in again.by_prompt] == [each.counts for each in found.by_prompt]
    assert held >= 17
    assert any("hardly a draw had φ > 0, and the means leave them out" in line for line in lines)


def test_where_no_prompt_is_met_nothing_is_known_but_a_limit(several: list[Case]) -> None:
    """What was said of all was what the first prompt's certificate said of itself."""
    found = certificate(sometimes(several, *range(len(PROMPTS))), 1)
    log_Z, phi = found.divergences.log_Z, found.divergences.phi
    assert not any(each.is_met for each in found.by_prompt)
    limits = [each.certificate.divergences.log_Z.high for each in found.by_prompt]
    assert log_Z.low == -math.inf
    assert sum(limits) / len(limits) <= log_Z.high < 0.0
    assert (phi.value, phi.low) == (0.0, 0.0)
    assert 0.0 < phi.high < 1.0
    assert any("no draw has shown φ > 0" in line for line in verdict(found))
    assert as_json(as_type(Certificate, as_json(found), "it")) == as_json(found)


def test_contradicting_draws_at_one_prompt_leave_nothing_said_of_all(several: list[Case]) -> None:
    sampler, cases = Sampler(several[0].twisted, several[0].potential, STEPS), [case.at for case in several[:3]]
    honest = [sampler.base.draw(Rng(9, (r,)), [case], 4000).log_phi for r, case in enumerate(cases)]
    other = torch.full((4000,), float(several[1].truth.log_Z) - 3.0, dtype=torch.float64)
    evidence = [Evidence(None, (of_draws(each, 0.0),)) for each in (honest[0], other, honest[2])]
    spending = Spending((4,), num_samples=4000, budget=8, methods=("iwae",))
    found = certify_prompts(Rng(0), WorkerContext(sampler, cases), ["a", "b", "c"], evidence, spending)
    assert found.alarm.startswith("b: ")
    assert not found.divergences.log_Z.is_known
    assert not found.divergences.kl_q_target.is_known


def test_a_constant_beside_unequal_weights_is_no_noise() -> None:
    shares = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    values = [0.0, 0.1, 0.0, 0.1]
    small, large = _mean(values, shares), _mean([value - 50.0 for value in values], shares)
    assert small.value == pytest.approx(0.06)
    assert large.value == pytest.approx(small.value - 50.0)
    assert large.high - large.low == pytest.approx(small.high - small.low)


@pytest.mark.parametrize("skew", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize(
    "weights", [[10.0] + [1.0] * 7, [30.0] + [1.0] * 19, [1000.0] + [1.0] * 3, [20.0, 10.0, 5.0, 2.0, 1.0, 1.0, 1.0]]
)
def test_means_by_unequal_weights_hold_the_truth(weights: list[float], skew: float) -> None:
    """What the heavy value draws to itself is no small residual: 40 % of intervals held it at a weight of 30 of 49."""
    shares, held = torch.tensor(weights, dtype=torch.float64), 0
    generator = torch.Generator().manual_seed(3)
    for _ in range(100):
        values = torch.randn(len(weights), generator=generator, dtype=torch.float64)
        if skew:
            values = skew * (values.square() - 1.0)
        found = _mean(values.tolist(), shares / shares.sum())
        # Of some prompts of a set the shares sum to less than one.
        assert _mean(values.tolist(), shares / 1000.0).value == pytest.approx(found.value)
        held += found.low <= 0.0 <= found.high
    assert held >= 90


def test_ranges_hold_under_unequal_weights_too() -> None:
    shares = torch.tensor([1.0] * 7 + [1.01], dtype=torch.float64)
    shares, values = shares / shares.sum(), [0.0, 0.9, 0.1, 0.8, 0.0, 0.1, 0.3, 0.2]
    alike, apart = (_mean(values, each, low=0.0, high=1.0) for each in (torch.full((8,), 0.125).double(), shares))
    assert apart.value == pytest.approx(alike.value, abs=1e-2)
    assert (apart.low, apart.high) == pytest.approx((alike.low, alike.high), abs=0.1)
    assert 0.0 <= apart.low < apart.high <= 1.0
    high = _mean([1.0, 1.0, 0.9], torch.tensor([0.5, 0.3, 0.2]).double(), low=0.0, high=1.0).high
    assert high <= 1.0


def test_of_one_prompt_its_own_certificate_is_the_whole(several: list[Case]) -> None:
    """How prompts differ is not known of one, and all was said to be unknown since "no draw has shown φ > 0"."""
    found = certificate(several[:1], 3, each=600)
    (own,) = found.by_prompt
    assert found.divergences == own.certificate.divergences
    assert found.divergences.kl_q_target.high < math.inf
    assert verdict(found) == verdict(own.certificate)
    # Nor of one that alone was met.
    found = certificate(sometimes(several, *range(1, len(PROMPTS))), 1, each=600)
    assert found.divergences == found.by_prompt[0].certificate.divergences
    assert any(line == "All of this is of one prompt, 0." for line in verdict(found))


def test_where_nothing_is_met_and_nothing_bounds_phi_nothing_is_known(several: list[Case]) -> None:
    never = sometimes(several[:2], *range(len(PROMPTS)))
    for case in never:
        object.__setattr__(case.potential, "log_upper_bound", None)
    sampler = Sampler(never[0].twisted, never[0].potential, STEPS)
    found = certify_prompts(
        Rng(0), WorkerContext(sampler, [case.at for case in never]), ["a", "b"], [Evidence(), Evidence()], SPENDING
    )
    assert (found.divergences.log_Z.value, found.divergences.log_Z.high) == (-math.inf, math.inf)
    lines = verdict(found)
    assert any(line.startswith("Nothing is known of log Z: no draw has shown φ > 0") for line in lines)
    assert any(line.startswith("At 2 prompts no draw had φ > 0: a, b. [") for line in lines)


def test_a_wide_log_Z_of_many_prompts_is_how_they_differ(several: list[Case]) -> None:
    line = next(each for each in verdict(certificate(several, 0, each=2000)) if "[TW309]" in each)
    assert "it takes more prompts; draws hardly matter" in line
    assert "--num-draws" not in line


def test_values_by_two_sets_of_draws_hold_log_Z_between_them(several: list[Case]) -> None:
    """By enumeration of two draws of q, one of p₀ and an exact sample; Ẑ itself is unbiased."""
    truth, model = several[0].truth, several[0].twisted
    p_of = {"q": truth.log_q(model).exp(), "p": truth.log_p.exp(), "sigma": truth.log_sigma.exp()}
    ratios, log_phi = truth.log_p + truth.log_phi - truth.log_q(model), truth.log_phi
    places, low, high, estimate = range(len(ratios)), 0.0, 0.0, 0.0
    for first, second, base, exact in product(places, repeat=4):
        own = _Weights(ratios[[first, second]], ratios[[exact]])
        below, above = _between([own, _Weights(log_phi[[base]], log_phi[[exact]])], math.inf)
        chance = float(p_of["q"][first] * p_of["q"][second] * p_of["p"][base] * p_of["sigma"][exact])
        low, high, estimate = low + chance * below, high + chance * above, estimate + chance * math.exp(below)
    assert math.log(estimate) == pytest.approx(float(truth.log_Z), abs=1e-12)
    assert low < float(truth.log_Z) - 0.01
    assert high > float(truth.log_Z) + 0.01


def test_it_comes_back_from_json(several: list[Case]) -> None:
    found = certificate(several, 2)
    again = as_type(Certificate, as_json(found), "it")
    assert [each.name for each in again.by_prompt] == [str(r) for r in range(len(several))]
    assert as_json(again) == as_json(found)
