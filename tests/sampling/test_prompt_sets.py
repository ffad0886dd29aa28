"""Several prompts at once: each is a target of its own, and none speaks for another. Truths by enumeration."""

from dataclasses import replace

import pytest
import torch

from tests.cases import Case, TablePotential
from twistlm.core.rng import Rng
from twistlm.models.tabular import TabularLM
from twistlm.sampling import cases as sampling
from twistlm.sampling.exact.budget import Budget, Counts
from twistlm.sampling.exact.collect import collect
from twistlm.sampling.mixture import Pool
from twistlm.sampling.sampler import Sampler, WorkerContext
from twistlm.sampling.twisted import TwistedLM
from twistlm.testing import assert_mean
from twistlm.training.batches import drawn, some_of
from twistlm.training.config import TrainingConfig
from twistlm.training.criteria import held_out_divergence, negative_lower_bound
from twistlm.training.losses import objective
from twistlm.training.scoring import score
from twistlm.training.sources import Batch, Setting, get_source, independent
from twistlm.training.trainer import Trainer
from twistlm.twists.tabular import TabularHead

STEPS = 2


@pytest.fixture(scope="module")
def several() -> list[Case]:
    """One model and one φ at three prompts of different lengths, whose Z differ by much."""
    lm = TabularLM.random(3, 4, seed=5)
    table = torch.randn(9, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * 2 - 4
    prompts = [torch.tensor([0]), torch.tensor([1, 2]), torch.tensor([2])]
    return [Case(lm, TablePotential(table.clamp_max(-0.1), 3), prompt, STEPS, "ignore") for prompt in prompts]


def at(several: list[Case], weights: tuple[float, ...] = (1.0, 1.0, 1.0)) -> list[sampling.Case]:
    return [replace(case.at, weight=weight) for case, weight in zip(several, weights, strict=True)]


def sampler_of(several: list[Case], model: TwistedLM | None = None) -> Sampler:
    potential = replace(several[0].potential)
    object.__setattr__(potential, "log_upper_bound", 0.0)
    return Sampler(several[0].base if model is None else model, potential, STEPS)


def test_the_pool_weighs_each_prompt_against_its_own_mixture(several: list[Case]) -> None:
    model = TwistedLM(several[0].lm, TabularHead.twist(torch.zeros_like(several[0].lm.table)), "ignore")
    sampler, cases = sampler_of(several, model), at(several)
    pool = Pool.begun(Rng(1), sampler, cases, 3000)
    model.twist.module.load_state_dict(
        {**model.twist.module.state_dict(), "table": torch.randn(several[0].lm.table.shape, dtype=torch.float64)}
    )
    pool = pool.grown(Rng(1), sampler, cases, 9000)
    for case, rows in zip(several, sampling.rows_of(pool.samples.prompts, cases), strict=True):
        assert len(rows) == 4000
        weights = (pool.final_log_ratio + pool.samples.log_phi)[rows].exp()
        assert_mean(weights, float(case.truth.log_Z.exp()))
    drawn = [pool.draw(Rng(k, ("part",)), cases[1:], 8) for k in range(400)]
    for r, case in enumerate(several[1:]):
        mine = slice(8 * r, 8 * (r + 1))
        assert all(set(map(tuple, map(torch.Tensor.tolist, part.prompts[mine]))) == {tuple(case.prompt.tolist())}
                   for part, _ in drawn)  # fmt: skip
        means = torch.stack([(ratio[mine, -1] + part.log_phi[mine]).exp().mean() for part, ratio in drawn])
        pooled = (pool.final_log_ratio + pool.samples.log_phi)[sampling.rows_of(pool.samples.prompts, [case.at])[0]]
        assert_mean(means, float(pooled.exp().mean()))


def test_the_second_half_of_a_budget_goes_where_exact_samples_are_missing(several: list[Case]) -> None:
    sampler, cases = sampler_of(several), at(several)
    whole = collect(Rng(2), WorkerContext(sampler, cases), Budget(6000, chunk=48), target="t")
    counts = Counts.of(cases, whole)
    assert min(counts.drawn) >= 1000
    log_Z = [float(case.truth.log_Z) for case in several]
    hardest, easiest = log_Z.index(min(log_Z)), log_Z.index(max(log_Z))
    assert counts.drawn[hardest] > 1.5 * counts.drawn[easiest]
    # Whatever the share of draws, those of a prompt that are accepted are exact samples of its own target.
    for case, rows in zip(several, sampling.rows_of(whole.exact.samples.prompts, cases), strict=True):
        exact, truth = whole.exact.samples.select(rows), case.truth
        for token in range(3):
            expected = float((truth.log_sigma.exp() * (truth.tokens[:, 0] == token)).sum())
            assert_mean((exact.tokens[:, 0] == token).double(), expected)


@pytest.mark.parametrize("max_draws", [60, 100, 600])
def test_a_small_budget_reaches_every_prompt(several: list[Case], max_draws: int) -> None:
    found = collect(Rng(2), WorkerContext(sampler_of(several), at(several)), Budget(max_draws, chunk=512), target="t")
    counts = Counts.of(at(several), found)
    assert min(counts.drawn) >= max_draws // 6
    assert max_draws <= sum(counts.drawn) <= 1.5 * max_draws


def test_a_budget_that_is_continued_gives_the_same(several: list[Case]) -> None:
    sampler, cases = sampler_of(several), at(several)
    asked = {"target": "t"}
    whole = collect(Rng(2), WorkerContext(sampler, cases), Budget(6000, num_samples=20, chunk=48), **asked)
    cut = replace(whole, draws=whole.draws.select(torch.arange(96)), accepted=whole.accepted[:96],
                  streams=whole.streams[:2], uniforms=whole.uniforms[:96])  # fmt: skip
    again = collect(Rng(2), WorkerContext(sampler, cases), Budget(6000, num_samples=20, chunk=48), so_far=cut, **asked)
    assert again.draws.tokens.equal(whole.draws.tokens)
    assert min(Counts.of(cases, whole).accepted) >= 20


def test_a_prompt_whose_phi_is_never_met_does_not_take_all_draws(several: list[Case]) -> None:
    hopeless = sampler_of(several)
    first = several[0].prompt

    class Never(type(hopeless.potential)):  # type: ignore[misc]
        def log_phi(self, prompts, tokens):  # type: ignore[no-untyped-def]
            found = super().log_phi(prompts, tokens)
            never = torch.tensor([prompt.equal(first) for prompt in prompts])
            return found.masked_fill(never, -torch.inf)

    never = Never(hopeless.potential.table, 3)
    object.__setattr__(never, "log_upper_bound", 0.0)
    cases = at(several)
    sampler, budget = replace(hopeless, potential=never), Budget(4800, num_samples=50, chunk=48)
    counts = Counts.of(cases, collect(Rng(3), WorkerContext(sampler, cases), budget, target="t"))
    assert counts.accepted[0] == 0
    assert counts.drawn[0] <= 4800
    assert min(counts.accepted[1:]) >= 50


def test_the_criterion_is_the_mean_over_prompts_by_weight(several: list[Case]) -> None:
    sampler, weights = sampler_of(several, several[0].twisted), (1.0, 3.0, 6.0)
    cases = at(several, weights)
    draws = collect(Rng(4), WorkerContext(sampler, cases), Budget(30_000, chunk=1200), target="t")
    found = held_out_divergence(Rng(5), draws, cases, 20_000)(Rng(6), sampler)
    expected = 0.0
    for case, weight in zip(several, weights, strict=True):
        truth = case.truth
        kl = truth.kl_target_q(several[0].twisted)
        expected += weight / 10 * (kl + float(truth.log_Z))
    assert found.value == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize("source", ["base", "proposal", "draws", "pool", "exact"])
def test_weights_are_normalised_within_each_prompt(several: list[Case], source: str) -> None:
    model = TwistedLM(several[0].lm, TabularHead.twist(torch.zeros_like(several[0].lm.table)), "ignore")
    sampler, cases = sampler_of(several, model), at(several)
    collection = collect(Rng(4), WorkerContext(sampler, cases), Budget(3000, chunk=1200), target="t")
    pool = Pool.begun(Rng(0), sampler, cases, 3000)
    setting = Setting(sampler, cases, collection, pool=pool)
    batch = get_source(source)(Rng(1), setting, 600)
    assert batch.num_targets == 3
    size = len(batch.samples) // 3
    for r, case in enumerate(cases):
        assert all(prompt.equal(case.prompt) for prompt in batch.samples.prompts[r * size : (r + 1) * size])


@pytest.mark.parametrize("source", ["draws", "pool", "exact"])
def test_a_prompt_that_an_update_draws_twice_has_its_sequences_twice(several: list[Case], source: str) -> None:
    model = TwistedLM(several[0].lm, TabularHead.twist(torch.zeros_like(several[0].lm.table)), "ignore")
    sampler, cases = sampler_of(several, model), at(several)
    collection = collect(Rng(4), WorkerContext(sampler, cases), Budget(3000, chunk=1200), target="t")
    twice = [cases[1], cases[1], cases[2]]
    pool = Pool.begun(Rng(0), sampler, cases, 3000)
    setting = Setting(sampler, twice, collection, pool=pool)
    batch = get_source(source)(Rng(1), setting, 60)
    assert [prompt.tolist() for prompt in batch.samples.prompts] == [
        c.prompt.tolist() for c in twice for _ in range(20)
    ]
    assert bool(batch.log_w.isfinite().all())


@pytest.mark.parametrize("loss", ["ctl", "gkl", "dpg", "sixo", "rl", "fudge"])
@pytest.mark.parametrize("source", ["proposal", "pool", "draws"])
def test_one_twist_comes_near_the_target_at_every_prompt(several: list[Case], loss: str, source: str) -> None:
    model = several[0].twisted_for(loss, torch.zeros_like(several[0].lm.table))
    sampler, cases = sampler_of(several, model), at(several)
    others = "base" if loss == "fudge" and source != "draws" else source
    if loss in ("fudge", "rl") and source == "pool":
        others = "base" if loss == "fudge" else "proposal"
    if "drawn" in objective(loss).roles and source == "draws":
        others = "draws"
    config = TrainingConfig(
        loss=loss, target_source=source, intermediate_source=others, num_particles=300, pool_batch=300,
        num_updates=120, learning_rate=0.1, weight_decay=0.0, evaluate_every=30, patience=None, shrinkages=(),
    )  # fmt: skip
    collection = collect(Rng(4), WorkerContext(sampler, cases), Budget(6000, chunk=1200), target="t")
    before = [case.truth.kl_target_q(case.base) for case in several]
    Trainer(Rng(0), Setting(sampler, cases, collection), config, negative_lower_bound(cases)).train()
    after = [case.truth.kl_target_q(model) for case in several]
    assert all(b < 0.5 * a for a, b in zip(before, after, strict=True)), (before, after)


def test_targets_of_an_update_follow_the_weights(several: list[Case]) -> None:
    cases = at(several, (1.0, 2.0, 5.0))
    for r, case in enumerate(cases):
        chosen = [some_of(Rng(k), cases, 2) for k in range(800)]
        counted = [sum(some.weight for some in part if some.prompt.equal(case.prompt)) / 2 for part in chosen]
        assert_mean(torch.tensor(counted), (1 / 8, 2 / 8, 5 / 8)[r])
    # Each once: copies of one prompt would halve the sequences that its weights are normalised among.
    assert all(len({tuple(some.prompt.tolist()) for some in part}) == len(part) for part in chosen)
    assert some_of(Rng(0), cases, 3) == cases
    alike = at(several)
    assert [some.weight for some in some_of(Rng(0), alike, 2)] == [1.0, 1.0]


@pytest.mark.parametrize("loss", ["ctl", "dpg", "sixo", "gkl", "fudge", "rl", "nvi"])
def test_prompts_count_by_their_weights(several: list[Case], loss: str) -> None:
    """All in one update, each with a third of its sequences, and not in copies of one or two sequences each."""
    model = several[0].twisted_for(loss, torch.randn(several[0].lm.table.shape, dtype=torch.float64))
    weights, wanted = (1.0, 2.0, 5.0), objective(loss)
    setting = Setting(sampler_of(several, model), at(several, weights))
    config = TrainingConfig(loss=loss, target_source="base", intermediate_source="base", num_particles=24)
    batches = drawn(Rng(3), config, setting, setting.targets, wanted.roles)
    (batch,) = {id(each): each for each in batches.values()}.values()
    assert batch.num_targets == 3

    def value(part: Batch) -> torch.Tensor:
        return wanted(score(model, dict.fromkeys(wanted.roles, part), normaliser=wanted.normaliser).scored)

    alone = [value(independent(batch.samples.select(torch.arange(8 * r, 8 * (r + 1))))) for r in range(3)]
    expected = sum(weight * each for weight, each in zip(weights, alone, strict=True)) / 8
    torch.testing.assert_close(value(batch), expected)
    if loss in ("dpg", "fudge"):
        # Their weights do not move with the twist, so the mean over parts is the whole.
        for count in (2, 3):
            parts = list(batch.parts(Rng(0), count))
            mean = torch.stack([value(part) * len(part.samples) for part in parts]).sum() / len(batch.samples)
            torch.testing.assert_close(mean, value(batch))


def test_the_lower_bound_that_judges_is_the_mean_by_weights(several: list[Case]) -> None:
    cases, shares = at(several, (1.0, 2.0, 5.0)), torch.tensor([1, 2, 5], dtype=torch.float64) / 8
    sampler = sampler_of(several)
    by_case = sampler.smc(Rng(2), cases * 5, 16).log_Z_hat.view(5, 3).mean(0)
    assert abs(float(by_case.mean() - shares @ by_case)) > 0.1
    assert negative_lower_bound(cases)(Rng(2), sampler).value == pytest.approx(-float(shares @ by_case))
