"""What the fit of an informed twist learns from: weights against the mixture of what drew, by enumeration."""

import pytest
import torch

from tests.cases import Case, TablePotential, make_case
from twistlm.core.rng import Rng
from twistlm.models.tabular import TabularLM
from twistlm.sampling import cases as sampling
from twistlm.sampling.exact.budget import Budget
from twistlm.sampling.exact.collect import collect
from twistlm.sampling.mixture import Pool
from twistlm.sampling.sampler import Sampler, WorkerContext
from twistlm.sampling.samples import Samples
from twistlm.sampling.twisted import TwistedLM
from twistlm.testing import assert_mean
from twistlm.training import informing
from twistlm.training.config import TrainingConfig
from twistlm.training.criteria import negative_lower_bound
from twistlm.training.informing import Draws, chosen
from twistlm.training.sources import Setting
from twistlm.training.trainer import Trainer
from twistlm.twists.tabular import TabularHead


def sampler_at(case: Case) -> Sampler:
    return Sampler(case.twisted, case.potential, case.num_steps)


@pytest.mark.parametrize("kind", ["fresh", "collected", "pool"])
def test_weights_estimate_what_they_should(case: Case, kind: str) -> None:
    sampler, cases = sampler_at(case), [case.at]
    if kind == "pool":
        pool = Pool.begun(Rng(1), sampler, cases, 4000).grown(Rng(2), sampler, cases, 4000)
        there = Draws(pool.samples, pool.log_ratio, pool.final_log_ratio + pool.samples.log_phi, [torch.arange(8000)])
    else:
        collected = None
        if kind == "collected":
            collected = collect(Rng(3), WorkerContext(sampler.base, cases), Budget(4000, chunk=2000), target="t").draws
        there = informing._drawn(Rng(4), sampler, cases, 8000, collected)
    # The mean of p₀/q̄ is 1 at every step, and that of p₀φ/q̄ is Z.
    for t in range(case.num_steps):
        assert_mean(there.log_ratio[:, t].exp(), 1.0)
    assert_mean(there.log_w.exp(), float(case.truth.log_Z.exp()))


def test_those_that_are_chosen_stand_for_all(case: Case) -> None:
    sampler = sampler_at(case)
    there = informing._drawn(Rng(0), sampler, [case.at], 20_000, None)
    some = chosen(Rng(1), there, 6000)
    assert len(some.samples) < 6000
    whole, part = there.log_w.exp().sum(), some.log_w.exp().sum() * len(there.log_w) / 6000
    assert float(part) == pytest.approx(float(whole), rel=0.03)
    ratios = there.log_ratio[:, 0].exp().sum(), some.log_ratio[:, 0].exp().sum() * len(there.log_w) / 6000
    assert float(ratios[1]) == pytest.approx(float(ratios[0]), rel=0.05)


def test_prompts_with_fewer_draws_have_a_mixture_of_their_own() -> None:
    lm = TabularLM.random(3, 4, seed=5)
    table = torch.randn(9, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * 2 - 4
    several = [
        Case(lm, TablePotential(table.clamp_max(-0.1), 3), prompt, 2, "ignore")
        for prompt in (torch.tensor([0]), torch.tensor([1, 2]))
    ]
    model = TwistedLM(lm, TabularHead.twist(torch.randn(lm.table.shape, dtype=torch.float64) * 0.5), "ignore")
    sampler, cases = Sampler(model, several[0].potential, 2), [case.at for case in several]
    one, other = (sampler.base.draw(Rng(k), cases[k : k + 1], count) for k, count in enumerate((6000, 400)))
    there = informing._drawn(Rng(4), sampler, cases, 8000, Samples.concatenate([one, other]))
    for case, index in zip(several, there.groups, strict=True):
        assert_mean(there.log_ratio[index, -1].exp(), 1.0)
        assert_mean(there.log_w[index].exp(), float(case.truth.log_Z.exp()))


def test_it_finds_what_the_potential_knows() -> None:
    case = make_case(num_steps=3)
    informed, found = informing.inform(Rng(0), sampler_at(case), [case.at], 2048)
    # This potential scores no prefixes: the twist's own numbers are fitted, at every step that gains.
    assert not found["asks"]
    assert not informed.coefficients[:, 2].any()
    assert set(informed.steps) <= {1, 2}


def test_a_pool_grows_at_all_of_its_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also at those that another source has nothing of, which nothing is learned at."""
    lm, potential = TabularLM.random(3, 4, seed=5), TablePotential(-torch.rand(9, dtype=torch.float64) - 1, 3)
    object.__setattr__(potential, "log_upper_bound", 0.0)
    model = TwistedLM(lm, TabularHead.twist(torch.zeros_like(lm.table)), "ignore")
    sampler = Sampler(model, potential, 2)
    targets = [sampling.Case(torch.tensor([token])) for token in range(3)]
    collection = collect(Rng(0), WorkerContext(sampler, targets[1:2]), Budget(400, chunk=200), target="t")
    config = TrainingConfig("dpg", "exact+pool", num_particles=60, num_updates=2, evaluate_every=1)
    seen, of = [], Draws.of
    monkeypatch.setattr(Draws, "of", staticmethod(lambda pool, cases: seen.append((pool, cases)) or of(pool, cases)))
    Trainer(Rng(1), Setting(sampler, targets, collection), config, negative_lower_bound(targets)).train()
    ((pool, cases),) = seen
    assert cases == targets[1:2]
    assert [len(rows) for rows in sampling.rows_of(pool.samples.prompts, targets)] == [sum(pool.counts) // 3] * 3


def test_it_asks_ten_times_at_most() -> None:
    assert informing._steps(10, "auto") == list(range(1, 10))
    assert informing._steps(20, "auto") == list(range(1, 20, 2))
    assert len(informing._steps(200, "auto")) <= 10
    assert informing._steps(9, 3) == [2, 5, 8]
    assert informing._steps(1, "auto") == []


def test_a_target_of_one_token_has_nothing_to_weigh() -> None:
    case = make_case(num_steps=1)
    informed, _ = informing.inform(Rng(0), sampler_at(case), [sampling.Case(case.prompt)], 200)
    assert informed.steps == ()
