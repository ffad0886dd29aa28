"""Verdicts: what is said is what the numbers are, and nothing is claimed that is not known."""

import math
from dataclasses import replace

import pytest

from cases import Case, make_case
from test_bounds import exact_of
from twistlm.bounds import Bounds, width
from twistlm.certificate import Certificate, Subject, certify
from twistlm.divergences import Divergences
from twistlm.estimates import Estimate
from twistlm.models.tabular import TabularHead
from twistlm.rng import Rng
from twistlm.twisted import TwistedLM
from twistlm.verdict import CLOSED, findings, misses_mode, verdict


def about(value: float, half: float = 0.05) -> Estimate:
    return Estimate(value, value - half, value + half, 100)


def certificate(kl_q_target: float, kl_target_q: float | None, lower: float = -4.0, upper: float | None = -3.9):  # type: ignore[no-untyped-def]
    found = Divergences(
        kl_q_target=about(kl_q_target), kl_target_q=None if kl_target_q is None else about(kl_target_q),
        kl_q_prior=about(1.0), log_phi=about(-1.0), phi=about(0.5), log_Z=about(-4.0),
        f=about(-4.0 - kl_q_target), g=None,
    )  # fmt: skip
    bounds = Bounds("smc", 16, about(lower), None if upper is None else about(upper))
    source = "lower bound only" if upper is None else "main sandwich"
    return Certificate((bounds,), found, source, 0.5, 100, 1.0)


@pytest.mark.parametrize(
    ("nats", "words"),
    [
        (0.01, "q is all but σ itself"),
        (0.5, "q is close to σ"),
        (2.0, "q is some way from σ"),
        (9.0, "q is far from σ"),
    ],
)
def test_the_worse_direction_decides(nats: float, words: str) -> None:
    for first, second in ((nats, 0.0), (0.0, nats)):
        assert verdict(certificate(first, second))[0].startswith(words)


def test_wide_intervals_claim_nothing() -> None:
    found = certificate(0.5, 0.5)
    for low, high, words in ((0.3, 1.2, "q is some way from σ"), (-1.0, 40.0, "How close q is to σ is not known")):
        wide = replace(found.divergences, kl_target_q=Estimate(0.5, low, high, 9))
        assert verdict(replace(found, divergences=wide))[0].startswith(words)


def test_a_closed_sandwich_says_so() -> None:
    line = verdict(certificate(0.1, 0.1))[1]
    assert line.startswith("The sandwich closes: log Z is between -4.05 and -3.85")


def test_an_open_sandwich_says_what_would_close_it() -> None:
    found = certificate(0.1, 0.1, upper=-3.0)
    line = verdict(found)[1]
    # A gap of 1 at 16 particles is one of 1/4, half of the allowance, at 64; the errors already fit the other half.
    assert "does not close" in line
    assert "about 64 particles" in line
    assert "as many runs" not in line
    wide = replace(found, bounds=(replace(found.bounds[0], lower=about(-4.0, 0.5), upper=about(-3.9, 0.5)),))
    line = verdict(wide)[1]
    # Errors of 1.0 in all are to become 1/4, so 16 times as many.
    assert "about 16 times as many runs and exact samples" in line
    assert "particles, if" not in line
    far = verdict(certificate(0.1, 0.1, upper=9.0))[1]
    assert "a better q" in far
    assert "particles, if" not in far
    unknown = replace(found, bounds=(replace(found.bounds[0], lower=Estimate(-4.0, -math.inf, math.inf, 1)),))
    assert "many more runs" in verdict(unknown)[1]


def test_the_particles_that_are_asked_for_close_it(case: Case) -> None:
    # The rule of 1/N, against SMC itself: with so many particles the gap is within its half of the allowance.
    subject, exact = Subject(case.twisted, case.potential, case.prompt, 3), exact_of(case, 600)
    few = certify(Rng(0), subject, exact, num_particles=(4,), num_samples=600, budget=2400, methods=("smc",))
    line = verdict(few)[1]
    assert "does not close" in line
    asked = int(line.split("about ")[1].split(" particles")[0].replace(",", ""))
    more = certify(
        Rng(1), subject, exact, num_particles=(asked,), num_samples=600, budget=600 * asked, methods=("smc",)
    )
    assert more.bounds[0].gap is not None
    assert more.bounds[0].gap < CLOSED / 2 < few.bounds[0].gap
    assert width(more.bounds[0]) < width(few.bounds[0])


def test_without_exact_samples_no_more_is_claimed_than_is_known() -> None:
    headline, sandwich = verdict(certificate(0.3, None, upper=None))
    assert "KL(q‖σ) is at least 0.300" in headline
    assert "close" not in headline
    assert "no upper bound" in sandwich


def test_a_missed_mode_is_called_out() -> None:
    assert any("mode is missed" in line for line in verdict(certificate(0.2, 5.0)))
    assert not any("mode is missed" in line for line in verdict(certificate(3.0, 5.0)))
    assert not any("mode is missed" in line for line in verdict(certificate(0.01, 0.2)))
    uncertain = certificate(0.2, 5.0).divergences
    assert not misses_mode(replace(uncertain, kl_target_q=Estimate(5.0, 0.1, 9.9, 3)))


def test_what_weights_take_is_compared_with_the_base_model() -> None:
    line = verdict(certificate(0.1, math.log(20)), certificate(5.0, math.log(3000)))[-1]
    assert "= 20 particles; from the base model 3,000" in line
    assert "10^9" in verdict(certificate(0.1, 9 * math.log(10)))[-1]


def test_a_sampler_of_the_impossible_is_not_called_close() -> None:
    found = certificate(0.1, 0.1)
    never = replace(found.divergences, kl_q_target=Estimate(math.inf, -math.inf, math.inf, 100))
    assert "φ = 0" in verdict(replace(found, divergences=never))[0]


# --- On real targets ---


def certified(model: TwistedLM, case: Case) -> Certificate:
    subject = Subject(model, case.potential, case.prompt, case.num_steps)
    log_Z = Estimate(*[float(case.truth.log_Z)] * 3, 2)
    return certify(Rng(1), subject, exact_of(case, 300), num_particles=(4,), num_samples=600, budget=400, log_Z=log_Z)


def test_exact_twists_raise_no_warning(case: Case) -> None:
    found = certified(case.optimal, case)
    assert findings(found, certified(case.base, case)) == []
    assert verdict(found)[0].startswith("q is all but σ itself")
    assert verdict(found)[1].startswith("The sandwich closes")


def test_a_twist_worse_than_none(case: Case) -> None:
    harmful = TwistedLM(case.lm, TabularHead.twist(-2.0 * case.optimal.twist.head.table.detach()), case.eos)
    bad, base = certified(harmful, case), certified(case.base, case)
    assert any(each.problem.startswith("The twist is worse than none") for each in findings(bad, base))
    assert not any(
        each.problem.startswith("The twist is worse") for each in findings(certified(case.optimal, case), base)
    )


def test_a_missed_mode() -> None:
    case = make_case()
    # What the target likes half the time, this proposal never says.
    table = case.optimal.twist.head.table.detach().clone()
    table[:, 2] -= 12.0
    dropping = TwistedLM(case.lm, TabularHead.twist(table), case.eos)
    assert [each.problem.split(":")[0] for each in findings(certified(dropping, case))] == ["A mode is missed"]
    assert findings(certified(case.optimal, case)) == []
