"""Verdicts: what is said is what the numbers are, and nothing is claimed that is not known."""

import math
from dataclasses import replace

import pytest

from tests.cases import Case, make_case
from tests.certificates.test_bounds import exact_of
from twistlm.certificates.bounds import Bounds, width
from twistlm.certificates.certificate import Certificate, OfPrompt
from twistlm.certificates.certify import certify
from twistlm.certificates.divergences import Divergences
from twistlm.certificates.evidence import Evidence
from twistlm.certificates.log_Z import Source, of_draws
from twistlm.certificates.spending import Spending
from twistlm.certificates.verdict import CLOSED, closing, findings, misses_mode, verdict
from twistlm.core.advice import parted
from twistlm.core.estimates import Estimate
from twistlm.core.rng import Rng
from twistlm.sampling.diagnostics import Finding
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.twisted import TwistedLM
from twistlm.twists.tabular import TabularHead


def about(value: float, half: float = 0.05) -> Estimate:
    return Estimate(value, value - half, value + half, 100)


def certificate(kl_q_target: float, kl_target_q: float | None, lower: float = -4.0, upper: float | None = -3.9):  # type: ignore[no-untyped-def]
    """log Z is what the sandwich says of it."""
    log_Z = Estimate(lower, lower - 0.05, math.inf if upper is None else upper + 0.05, 100)
    found = Divergences(
        kl_q_target=about(kl_q_target), kl_target_q=None if kl_target_q is None else about(kl_target_q),
        kl_q_prior=about(1.0), log_phi=about(-1.0), phi=about(0.5), log_Z=log_Z, f=about(-4.0 - kl_q_target), g=None,
    )  # fmt: skip
    bounds = Bounds("smc", 16, about(lower), None if upper is None else about(upper))
    return Certificate((bounds,), found, Source.BELOW if upper is None else Source.SMC, 0.5, 100, 1.0)


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
    for low, high, words in ((0.3, 1.2, "q is some way from σ"), (0.0, 40.0, "How close q is to σ is not known")):
        wide = replace(found.divergences, kl_target_q=Estimate(0.5, low, high, 9))
        assert verdict(replace(found, divergences=wide))[0].startswith(words)


def test_two_exact_samples_do_not_speak() -> None:
    """They said KL(σ‖q) = 2.65 [−20.0, 25.3]."""
    found = certificate(0.5, 0.5)
    one_sided = replace(found.divergences, kl_target_q=Estimate(2.65, 1.5, math.inf, 2))
    line = verdict(replace(found, divergences=one_sided))[0]
    assert line.startswith("q is some way from σ, if not farther")
    assert "KL(σ‖q) is at least 1.500 nats" in line
    nothing = replace(found.divergences, kl_target_q=Estimate(2.65, -math.inf, math.inf, 2))
    lines = verdict(replace(found, divergences=nothing))
    assert lines[0].startswith("How close q is to σ is not known")
    assert "KL(σ‖q) is not known" in lines[0]
    assert not any("2.65" in line or "particles" in line for line in lines)


def test_log_Z_that_is_known_well_is_said_so_whatever_the_sandwich() -> None:
    assert verdict(certificate(0.1, 0.1))[1].startswith("log Z is known to 0.20 nats: log Z = -4.000 [-4.050, -3.850]")
    wide = certificate(0.1, 0.1, upper=-1.0)
    by_draws = replace(wide.divergences, log_Z=about(-4.0, 0.1))
    line = verdict(replace(wide, divergences=by_draws, log_Z_source=Source.DRAWS))[1]
    assert line.startswith("log Z is known to 0.20 nats")
    assert "base draws" in line


def test_an_open_sandwich_says_what_would_close_it() -> None:
    found = certificate(0.1, 0.1, upper=-3.0)
    line = verdict(found)[1]
    # A gap of 1 at 16 particles is one of 1/4, half of the allowance, at 64; the errors already fit the other half.
    assert "not known to 0.5 nats" in line
    assert "about 64 particles" in line
    assert "as many runs" not in line
    bounds = replace(found.bounds[0], lower=about(-4.0, 0.5), upper=about(-3.9, 0.5))
    line = verdict(replace(found, bounds=(bounds,)))[1]
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
    subject, exact = Sampler(case.twisted, case.potential, 3), exact_of(case, 600)
    few = certify(
        Rng(0),
        subject,
        case.at,
        Evidence(exact),
        Spending(num_particles=(4,), num_samples=600, budget=2400, methods=("smc",)),
    )
    line = closing(few.bounds[0])
    asked = int(line.split("about ")[1].split(" particles")[0].replace(",", ""))
    more = certify(
        Rng(1),
        subject,
        case.at,
        Evidence(exact),
        Spending(num_particles=(asked,), num_samples=600, budget=600 * asked, methods=("smc",)),
    )
    assert more.bounds[0].gap is not None
    assert more.bounds[0].gap < CLOSED / 2 < few.bounds[0].gap
    assert width(more.bounds[0]) < width(few.bounds[0])


def test_without_exact_samples_no_more_is_claimed_than_is_known() -> None:
    found = certificate(0.3, None, upper=None)
    one_sided = replace(found.divergences, kl_q_target=Estimate(0.3, 0.25, math.inf, 100))
    headline, log_Z = verdict(replace(found, divergences=one_sided))
    assert "KL(q‖σ) is at least 0.250 nats" in headline
    assert "close" not in headline
    assert "nothing limits it from above" in log_Z


def test_a_missed_mode_is_called_out() -> None:
    assert any("mode is missed" in line for line in verdict(certificate(0.2, 5.0)))
    assert not any("mode is missed" in line for line in verdict(certificate(3.0, 5.0)))
    assert not any("mode is missed" in line for line in verdict(certificate(0.01, 0.2)))
    uncertain = certificate(0.2, 5.0).divergences
    assert not misses_mode(replace(uncertain, kl_target_q=Estimate(5.0, 0.1, 9.9, 3)))


def test_what_weights_take_is_compared_with_the_base_model() -> None:
    line = verdict(certificate(0.1, math.log(20)), certificate(5.0, math.log(3000)))[-1]
    assert "= 19 to 21 particles; from the base model 2,854 to 3,154" in line
    assert "10^9" in verdict(certificate(0.1, 9 * math.log(10)))[-1]


def test_only_what_is_wrong_has_a_code() -> None:
    def codes(found: Certificate, smc: tuple[Finding, ...] = ()) -> list[str]:
        return [advice.code for _, advice in map(parted, verdict(found, None, smc)) if advice is not None]

    good, far = certificate(0.1, 0.2), certificate(0.2, 5.0, upper=-1.0)
    assert codes(good) == []
    assert codes(far, (TOO_FEW,)) == ["TW303", "TW309", "TW307", "TW401"]
    one_sided = replace(good.divergences, kl_target_q=Estimate(0.5, 0.0, math.inf, 9))
    assert codes(replace(good, divergences=one_sided)) == ["TW304"]
    assert codes(replace(good, divergences=replace(one_sided, kl_target_q=Estimate(5.0, 4.0, math.inf, 9)))) == [
        "TW303",
        "TW307",
    ]
    assert codes(certificate(0.1, None, upper=None)) == ["TW305", "TW310"]


def test_prompts_that_could_not_be_certified_are_no_contradiction() -> None:
    of = OfPrompt("easy", certificate(0.1, 0.1))
    missing = replace(of.certificate, by_prompt=(of,), alarm="hard could not be certified: it raised")
    (line,) = verdict(missing)
    assert "hard could not be certified: it raised" in line
    assert "contradict" not in line
    assert line.endswith("[TW302]")
    wrong = replace(of, certificate=replace(of.certificate, alarm="one says this and one says that"))
    (line,) = verdict(replace(missing, by_prompt=(wrong,), alarm=f"easy: {wrong.certificate.alarm}"))
    assert "contradict" in line
    assert line.endswith("[TW301]")


def test_a_sampler_of_the_impossible_is_not_called_close() -> None:
    found = certificate(0.1, 0.1)
    never = replace(found.divergences, kl_q_target=Estimate(math.inf, -math.inf, math.inf, 100))
    assert "φ = 0" in verdict(replace(found, divergences=never))[0]


TOO_FEW = Finding("Too few particles: 1.1 of 64.", "more.", "TW401")


@pytest.mark.parametrize(
    ("kl_target_q", "sandwich", "alarm", "smc", "said", "silent"),
    [
        # An alarm stands alone.
        (0.3, -3.9, "base draws say this and SMC says that", (TOO_FEW,), ["Nothing is certified"],
         ["close", "particles", "log Z is known"]),
        # One demo said all of this at once: close, open, 2 particles suffice, 64 are too few.
        (0.3, -3.0, "", (TOO_FEW,), ["q is close", "log Z is not known", "Too few"], ["To reach σ"]),
        # SMC has shown what its particles were worth: no other number of them is named.
        (3.5, -3.9, "", (TOO_FEW,), ["q is far", "log Z is known", "Too few"], ["To reach σ"]),
        # A small number of particles says nothing about a q that is close.
        (0.3, -3.9, "", (), ["q is close", "log Z is known"], ["To reach σ", "Too few"]),
        (3.5, -3.9, "", (), ["q is far", "log Z is known", "To reach σ"], ["close"]),
        (3.5, -1.0, "", (), ["q is far", "log Z is not known", "To reach σ"], ["log Z is known"]),
    ],
)  # fmt: skip
def test_one_voice(
    kl_target_q: float, sandwich: float, alarm: str, smc: tuple[Finding, ...], said: list[str], silent: list[str]
) -> None:
    found = replace(certificate(0.2, kl_target_q, upper=sandwich), alarm=alarm)
    lines = verdict(found, None, smc)
    assert [any(words in line for line in lines) for words in said] == [True] * len(said)
    assert not [words for words in silent if any(words in line for line in lines)]
    if alarm:
        assert len(lines) == 1


# --- On real targets ---


def certified(model: TwistedLM, case: Case, num_draws: int = 20_000) -> Certificate:
    subject = Sampler(model, case.potential, case.num_steps)
    base = Sampler(case.base, case.potential, case.num_steps)
    witness = of_draws(base.draw(Rng(2), [case.at], num_draws).log_phi, 0.0)
    return certify(
        Rng(1),
        subject,
        case.at,
        Evidence(exact_of(case, 300), (witness,)),
        Spending(num_particles=(4,), num_samples=600, budget=400),
    )


def test_exact_twists_raise_no_warning(case: Case) -> None:
    # 20,000 base draws leave 0.01 or 0.02 open, by their seed.
    found = certified(case.optimal, case, num_draws=50_000)
    assert findings(found, certified(case.base, case)) == []
    assert verdict(found)[0].startswith("q is all but σ itself")
    assert verdict(found)[1].startswith("log Z is known to 0.01 nats")


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
