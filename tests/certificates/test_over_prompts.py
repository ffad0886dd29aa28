"""Certificates over prompts, on tabular models whose divergences are known by enumeration."""

from dataclasses import replace

import pytest
import torch

from tests.cases import Case, TablePotential
from twistlm.certificates.certificate import Certificate
from twistlm.certificates.evidence import Evidence, acceptance
from twistlm.certificates.log_Z import of_draws
from twistlm.certificates.over_prompts import certify_prompts
from twistlm.certificates.spending import Spending
from twistlm.certificates.verdict import verdict
from twistlm.core.rng import Rng
from twistlm.models.tabular import TabularLM
from twistlm.sampling.exact.budget import Budget
from twistlm.sampling.exact.collect import collect
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.workplace import Workplace

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
    draws = collect(Rng(seed, ("draws",)), Workplace(sampler, cases), Budget(each * len(cases), chunk=80), target="t")
    rest, evaluation = draws.split((0.5, 0.5))
    evidence = []
    for case in cases:
        here = evaluation.at([case])
        exact = here.exact if len(here.exact) else None
        evidence.append(Evidence(exact, (of_draws(rest.at([case]).draws.log_phi, 0.0),), acceptance(here)))
    names = [str(r) for r in range(len(cases))]
    return certify_prompts(Rng(seed), Workplace(sampler, cases), names, evidence, spending)


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


def test_it_comes_back_from_json(several: list[Case]) -> None:
    found = certificate(several, 2)
    again = Certificate.from_dict(found.as_dict())
    assert [each.name for each in again.by_prompt] == [str(r) for r in range(len(several))]
    assert again.as_dict() == found.as_dict()
