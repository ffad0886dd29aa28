"""One log Z: from every source, at the level that is stated, and none where sources exclude each other."""

import json
import math
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import Tensor

import twistlm
from tests.architectures import tiny_lm
from tests.cases import Case
from tests.certificates.test_bounds import exact_of
from twistlm import Target
from twistlm.certificates.certificate import Certificate
from twistlm.certificates.certify import certify
from twistlm.certificates.evidence import Evidence
from twistlm.certificates.log_Z import Source, Witness, decide, of_draws, of_weights
from twistlm.certificates.spending import Spending
from twistlm.certificates.verdict import verdict
from twistlm.core.estimates import Estimate
from twistlm.core.rng import Rng
from twistlm.core.storage import as_json, as_type
from twistlm.potentials import Regex
from twistlm.sampling.proposals import base
from twistlm.sampling.ranges import Ranges
from twistlm.sampling.sampler import Sampler

EPS = math.log(1e-16)


def indicators(hits: int, n: int) -> Tensor:
    return torch.cat([torch.zeros(hits), torch.full((n - hits,), EPS)]).double()


def test_a_rare_event_that_was_not_drawn_leaves_no_point() -> None:
    """Half of 732 draws, none of which was an event: "log Z = −36.841 [−36.841, −36.841]", and right was −5.4."""
    log_Z = decide([of_draws(indicators(0, 366), 0.0)], EPS, 0.0).log_Z
    assert log_Z.low == pytest.approx(EPS)
    assert log_Z.high == pytest.approx(math.log(1 - 0.025 ** (1 / 366)), abs=0.01)
    assert log_Z.low < -5.4 < log_Z.high


@pytest.mark.parametrize("expected", [0.3, 1.0, 2.0, 3.0])
def test_it_is_held_at_the_stated_level_however_few_events_there_are(expected: float) -> None:
    """Intervals missed in 25, 12 and 4 % of cases at 1, 2 and 3 expected events."""
    n = 366
    p = expected / n
    truth = math.log(p + math.exp(EPS) * (1 - p))
    chance = stats.binom.pmf(range(20), n, p)
    found = [decide([of_draws(indicators(hits, n), 0.0)], EPS, 0.0).log_Z for hits in range(20)]
    missed = sum(float(c) for c, e in zip(chance, found, strict=True) if not e.low <= truth <= e.high)
    assert missed <= 0.05


def test_forty_seeds_of_a_rare_two_valued_potential() -> None:
    """φ ∈ {1, 1e-16} at P ≈ 0.5 %, num_draws = 256: the truth was held 24 times of 40, KL(q‖σ) was a point once."""
    lm = tiny_lm()
    target = Target(lm, Regex("11$", eps=1e-16), "5", 3, eos="ignore")
    many = twistlm.certify(target, num_draws=8192, num_samples=64, num_particles=(4,), methods=("iwae",)).divergences
    assert many.log_Z.value < -3.0
    held, kls = 0, []
    for seed in range(40):
        found = twistlm.certify(
            target, num_draws=256, num_samples=64, num_particles=(4,), methods=("iwae",), seed=seed + 100
        ).divergences
        held += found.log_Z.low <= many.log_Z.value <= found.log_Z.high
        kls += [found.log_Z, found.kl_q_target, found.phi]
    # The reference has an error of its own, a fifth of theirs.
    assert stats.binomtest(held, 40).proportion_ci(0.99, "exact").high >= 0.95, held
    assert all(each.high > each.low for each in kls)


def test_weights_limit_it_from_both_sides_without_any_bound(case: Case) -> None:
    """E[w] = Z and, of exact samples, E[1/w] = 1/Z: over 300 repeats, whatever the proposal is."""
    truth, held = float(case.truth.log_Z), 0
    subject = Sampler(case.twisted, case.potential, case.num_steps)
    exact = exact_of(case, 300 * 20)
    ratios = subject.log_ratios(exact.samples)
    drawn = subject.draw(Rng(3), [case.at], 300 * 40)
    weights = (drawn.log_p - drawn.log_q).sum(-1) + drawn.log_phi
    for k in range(300):
        witness = of_weights(weights[40 * k : 40 * k + 40], ratios[20 * k : 20 * k + 20], None)
        log_Z = decide([witness]).log_Z
        held += log_Z.low <= truth <= log_Z.high
    assert stats.binomtest(held, 300).proportion_ci(0.99, "exact").high >= 0.95, held


def test_the_best_limit_counts_from_each_side() -> None:
    sharp = Witness(Source.SMC, torch.full((4000,), -5.0), torch.full((4000,), -5.0))
    found = decide([of_draws(indicators(2, 400), 0.0), sharp], None, 0.0)
    assert found.source == Source.SMC
    assert (found.log_Z.low, found.log_Z.high) == (pytest.approx(-5.0, abs=0.01), pytest.approx(-5.0, abs=0.01))
    assert found.log_Z.low < found.log_Z.value < found.log_Z.high
    below = decide([Witness(Source.WEIGHTS, torch.full((40,), -5.0))])
    assert (below.source, below.log_Z.high) == (Source.BELOW, math.inf)
    assert str(below.log_Z).endswith("∞)")


def test_a_mean_that_others_exclude_is_not_the_value() -> None:
    """64 weights without a hit are all alike, so that their mean was nearest to its limit, and cut to the interval."""
    draws = of_draws(indicators(40, 4000), 0.0)
    weights = of_weights(torch.full((64,), math.log(0.004)).double() + torch.linspace(-0.01, 0.01, 64), None, None)
    found = decide([draws, weights])
    assert found.source is Source.DRAWS
    assert found.log_Z.low < found.log_Z.value < found.log_Z.high
    assert found.log_Z.value == pytest.approx(math.log(0.01), abs=1e-6)


def test_sources_that_exclude_each_other_are_an_alarm() -> None:
    wrong = Witness(Source.SMC, torch.full((4000,), -1.0), torch.full((4000,), -1.0))
    found = decide([of_draws(indicators(2, 400), 0.0), wrong], None, 0.0)
    assert "SMC say that log Z is at least -1.0" in found.alarm
    assert "base draws" in found.alarm


def test_a_source_that_excludes_what_is_certain_is_an_alarm() -> None:
    """400 draws of a coin, and at most 0.4 for certain: log Z was −0.916 (exact)."""
    coin = Witness(Source.DRAWS, indicators(200, 400), None, 0.0)
    found = decide([coin], None, math.log(0.4))
    assert "base draws say that log Z is at least" in found.alarm
    assert "it is at most -0.916 for certain" in found.alarm
    assert "it is at least -0.105 for certain" in decide([coin], math.log(0.9), 0.0).alarm
    # What only the 95 % limits exclude is no alarm, and no point either.
    near = decide([coin], None, math.log(0.445))
    assert not near.alarm
    assert near.log_Z.low < near.log_Z.high == math.log(0.445)


def alarmed(case: Case, log_phi: Tensor) -> Certificate:
    subject = Sampler(case.twisted, case.potential, case.num_steps)
    return certify(
        Rng(0),
        subject,
        case.at,
        Evidence(exact_of(case, 60), (of_draws(log_phi, 0.0),)),
        Spending(num_particles=(4,), num_samples=400),
    )


def test_a_certificate_of_another_targets_draws_is_withheld(case: Case) -> None:
    """Draws of another target: log Z −0.5 and −1.9 by turns, and KL(σ‖q) = −1.06 [−1.24, −0.87] came of it."""
    truth = float(case.truth.log_Z)
    other = torch.full((4000,), truth - 3.0, dtype=torch.float64)
    found = alarmed(case, other)
    assert found.alarm
    assert not found.divergences.kl_target_q.is_known  # type: ignore[union-attr]
    assert not found.divergences.log_Z.is_known
    (line,) = verdict(found)
    assert line.startswith("Nothing is certified")
    assert as_type(Certificate, as_json(found), "it").alarm == found.alarm
    honest = Sampler(case.base, case.potential, case.num_steps).draw(Rng(4), [case.at], 4000).log_phi
    assert not alarmed(case, honest).alarm


def test_no_kl_is_negative_nor_a_probability_above_one(case: Case) -> None:
    subject = Sampler(case.optimal, case.potential, case.num_steps)
    for seed in range(10):
        found = certify(
            Rng(seed), subject, case.at, Evidence(exact_of(case, 3, seed)), Spending(num_particles=(4,), num_samples=32)
        ).divergences
        for kl in (found.kl_q_target, found.kl_target_q, found.kl_q_prior):
            assert kl is not None
            assert kl.value >= 0
            assert kl.low >= 0 or not kl.is_known
        assert 0 <= found.phi.low < found.phi.high <= 1
        assert found.log_Z.high <= 0


def test_two_exact_samples_say_nothing_from_above(case: Case) -> None:
    """They said KL(σ‖q) = 2.65 [−20.0, 25.3]."""
    subject = Sampler(case.twisted, case.potential, case.num_steps)
    few = certify(
        Rng(0), subject, case.at, Evidence(exact_of(case, 2)), Spending(num_particles=(4,), num_samples=64)
    ).divergences.kl_target_q
    assert few is not None
    assert few.high == math.inf
    assert few.low >= 0 or str(few) == "not known"


def test_an_infinite_upper_bound_gives_way_to_the_bound_of_phi(case: Case) -> None:
    bounds = twistlm.certificates.bounds.Bounds.of(
        "iwae", 2, torch.tensor([-1.0, -2.0]), torch.tensor([math.inf, -0.5]), Ranges(high=0.0)
    )
    assert bounds.upper is not None
    assert (bounds.upper.value, bounds.upper.high) == (0.0, 0.0)


def test_what_is_known_by_definition_is_said_so(case: Case) -> None:
    subject = Sampler(case.twisted, case.potential, case.num_steps, proposal=base)
    found = certify(Rng(0), subject, case.at, Evidence(), Spending(num_particles=(4,), num_samples=64)).divergences
    assert str(found.kl_q_prior) == "0.000 (exact)"
    assert str(Estimate(-0.0001, -0.2, 0.1, 9)) == "0.000 [-0.200, 0.100]"
    assert str(replace(found.kl_q_prior, low=-math.inf, high=math.inf)) == "not known"


def test_an_impossible_event_is_certified_as_far_as_it_goes() -> None:
    """No draw has φ > 0: there is no estimate of log Z, and still a limit of it."""
    target = Target(tiny_lm(), Regex("no such words"), "5", 3, eos="ignore")
    found = twistlm.certify(target, num_draws=512, num_samples=64, num_particles=(4,))
    assert found.divergences.log_Z.low == -math.inf
    assert found.divergences.log_Z.high == pytest.approx(math.log(3.7 / 512), abs=0.5)
    assert found.divergences.phi.low == 0.0
    assert found.acceptance is not None
    assert found.acceptance.high < 0.01
    json.dumps(as_json(found), allow_nan=False)
    assert "log Z is at most" in verdict(found)[1]
