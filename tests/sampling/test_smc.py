"""SMC against exact enumeration."""

import pytest
import torch

from tests.cases import Case, cases, make_case, samples_of
from twistlm.core.errors import ConfigError, DeadParticlesError, PromptError, ResamplingError
from twistlm.core.logmath import log_mean_exp
from twistlm.core.registry import available
from twistlm.core.rng import Rng
from twistlm.models.tabular import TabularLM
from twistlm.potentials.base import BasePotential
from twistlm.sampling import smc
from twistlm.sampling.proposals import base, get_proposal, tempered, twist_induced
from twistlm.sampling.resampling import Resampler, multinomial, systematic
from twistlm.sampling.sampler import Sampler, in_parts
from twistlm.sampling.smc import Keep
from twistlm.sampling.twisted import TwistedLM
from twistlm.testing import Enumeration, assert_mean, enumerate_paths, exact_twist
from twistlm.twists.tabular import TabularHead

RESAMPLERS = [entry.value for entry in available("resampler").values()]
PROPOSALS = {"base": base, "twist_induced": twist_induced, "tempered": tempered(0.5)}


def exact_samples(case: Case, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    index = torch.multinomial(case.truth.log_sigma.exp(), count, True, generator=generator)
    return case.truth.tokens[index]


@pytest.mark.parametrize("resampler", RESAMPLERS, ids=lambda r: r.name)
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("retain", [False, True])
def test_exact_twists_have_zero_variance(case: Case, resampler: Resampler, threshold: float, retain: bool) -> None:
    retained = exact_samples(case, 5, 0) if retain else None
    result = Sampler(case.optimal, case.potential, case.num_steps, resampler=resampler, ess_threshold=threshold).smc(
        Rng(0), [case.at] * 5, 3, retained=retained
    )
    torch.testing.assert_close(result.log_Z_hat, case.truth.log_Z.expand(5), rtol=0, atol=1e-12)


@pytest.mark.parametrize("resampler", RESAMPLERS, ids=lambda r: r.name)
@pytest.mark.parametrize("proposal", PROPOSALS.values(), ids=PROPOSALS)
@pytest.mark.parametrize("threshold", [0.0, 0.95, 1.0])
def test_z_hat_is_exactly_unbiased(tiny_case: Case, resampler: Resampler, proposal: object, threshold: float) -> None:
    paths = enumerate_paths(
        lambda rng: (
            Sampler(
                tiny_case.twisted,
                tiny_case.potential,
                2,
                proposal=proposal,
                resampler=resampler,
                ess_threshold=threshold,
            )
            .smc(rng, [tiny_case.at], 2)
            .log_Z_hat.exp()
        )
    )
    assert sum(p for p, _ in paths) == pytest.approx(1.0, abs=1e-12)
    mean = sum(p * float(z) for p, z in paths)
    assert mean == pytest.approx(float(tiny_case.truth.log_Z.exp()), abs=1e-12)
    assert len({round(float(z), 9) for _, z in paths}) > 1, "with no variance this would prove nothing"


@pytest.mark.parametrize("resampler", RESAMPLERS, ids=lambda r: r.name)
@pytest.mark.parametrize("threshold", [0.0, 0.95, 1.0])
def test_conditional_smc_is_exactly_unbiased(tiny_case: Case, resampler: Resampler, threshold: float) -> None:
    # Under the extended target, whose samples conditional SMC completes, E[1 / Ẑ] = 1 / Z.
    truth, total = tiny_case.truth, 0.0
    for tokens, log_sigma in zip(truth.tokens, truth.log_sigma, strict=True):
        paths = enumerate_paths(
            lambda rng, tokens=tokens: Sampler(
                tiny_case.twisted, tiny_case.potential, 2, resampler=resampler, ess_threshold=threshold
            ).smc(rng, [tiny_case.at], 2, retained=tokens.unsqueeze(0))
        )
        assert all(result.particles.tokens[0, 0].equal(tokens) for _, result in paths)
        total += float(log_sigma.exp()) * sum(p * float((-r.log_Z_hat).exp()) for p, r in paths)
    assert total == pytest.approx(float((-truth.log_Z).exp()), abs=1e-11)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_z_hat_is_exactly_unbiased_where_one_twist_proposes_and_another_weighs(
    tiny_case: Case, threshold: float
) -> None:
    table = torch.randn(tiny_case.lm.table.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    model = TwistedLM(tiny_case.lm, tiny_case.twisted.twist, tiny_case.eos, TabularHead.twist(table))
    paths = enumerate_paths(
        lambda rng: Sampler(model, tiny_case.potential, 2, ess_threshold=threshold).smc(rng, [tiny_case.at], 2)
    )
    mean = sum(p * float(result.log_Z_hat.exp()) for p, result in paths)
    assert mean == pytest.approx(float(tiny_case.truth.log_Z.exp()), abs=1e-12)
    # What proposes is the second twist, alone.
    samples = tiny_case.truth.samples(tiny_case.base)
    proposed = TwistedLM(tiny_case.lm, TabularHead.twist(table), tiny_case.eos)
    expected = proposed.densities(samples, twist_induced)
    found = model.densities(samples, twist_induced)
    torch.testing.assert_close(found.log_q, expected.log_q)
    torch.testing.assert_close(found.log_psi, tiny_case.twisted.densities(samples, twist_induced).log_psi)


def test_weighted_samples_estimate_expectations_under_the_target(tiny_case: Case) -> None:
    # E[Ẑ Σ W f] = Z E_σ[f] exactly, for every indicator f: the samples and their weights belong together.
    truth = tiny_case.truth
    estimate = torch.zeros(len(truth.tokens), dtype=torch.float64)
    for p, result in enumerate_paths(
        lambda rng: Sampler(tiny_case.twisted, tiny_case.potential, 2, resampler=systematic, ess_threshold=1.0).smc(
            rng, [tiny_case.at], 2
        )
    ):
        number = result.particles.tokens[0] @ torch.tensor([2, 1])
        estimate.index_add_(0, number, p * (result.weights * result.log_Z_hat.exp())[0])
    torch.testing.assert_close(estimate, (truth.log_sigma + truth.log_Z).exp(), rtol=0, atol=1e-12)


def test_a_chosen_sequence_is_properly_weighted(tiny_case: Case) -> None:
    """E[Ẑ 1[s]] = p₀φ(s) of the one sequence that each run gives, over every random path."""
    sampler, exact = Sampler(tiny_case.twisted, tiny_case.potential, 2), tiny_case.truth

    def weighted(rng: Rng) -> torch.Tensor:
        chosen = sampler.choose(rng, [tiny_case.at], 2)
        return (exact.tokens == chosen.samples.tokens).all(-1) * chosen.log_Z_hat.exp()

    mean = sum(p * value for p, value in enumerate_paths(weighted))
    torch.testing.assert_close(mean, (exact.log_sigma + exact.log_Z).exp(), rtol=1e-9, atol=0)


def test_log_z_hat_is_the_log_mean_weight_at_every_step(case: Case) -> None:
    # Replays the recorded increments: resampling must leave the estimate where it was.
    result = Sampler(case.twisted, case.potential, case.num_steps, ess_threshold=0.9).smc(Rng(3), [case.at] * 20, 4)
    log_w = torch.zeros(20, 4, dtype=torch.float64)
    assert any(bool(info.resampled.any()) for info in result.infos)
    for info in result.infos:
        log_w = torch.where(info.resampled.unsqueeze(-1), log_mean_exp(log_w).unsqueeze(-1).expand(-1, 4), log_w)
        log_w = log_w + info.log_increment
    torch.testing.assert_close(log_w, result.particles.log_w)
    torch.testing.assert_close(log_mean_exp(log_w), result.log_Z_hat)


@pytest.mark.parametrize("proposal", PROPOSALS.values(), ids=PROPOSALS)
def test_unbiased_over_many_runs(case: Case, proposal: object) -> None:
    result = Sampler(case.twisted, case.potential, case.num_steps, proposal=proposal).smc(Rng(1), [case.at] * 3000, 4)
    assert_mean(result.log_Z_hat.exp(), float(case.truth.log_Z.exp()))
    assert_mean(result.log_Z_hat, float(case.truth.log_Z), side="below")


def test_prompts_of_different_lengths_share_a_batch() -> None:
    case = make_case(num_steps=2, prompt=(1, 2))
    short = torch.tensor([2])
    optimal = case.optimal
    other = Enumeration.of(case.base, case.potential, short, 2)
    table = optimal.twist.head.table + exact_twist(case.base, other).head.table
    model = TwistedLM(case.lm, TabularHead.twist(table.detach()), case.eos)
    result = Sampler(model, case.potential, 2).smc(Rng(0), cases([case.prompt, short]), 4)
    expected = torch.stack([case.truth.log_Z, other.log_Z])
    assert abs(float(expected[0] - expected[1])) > 0.01
    torch.testing.assert_close(result.log_Z_hat, expected, rtol=0, atol=1e-12)


def test_recorded_features_follow_the_genealogy(case: Case) -> None:
    result = Sampler(case.twisted, case.potential, case.num_steps, ess_threshold=1.0).smc(
        Rng(2), [case.at] * 4, 5, keep=Keep(features=True)
    )
    samples = samples_of(result, case.twisted, [case.prompt] * 4)
    expected = case.lm.features(samples.prompts, samples.tokens)
    torch.testing.assert_close(samples.features[samples.mask], expected[samples.mask])


def test_recorded_siblings_follow_the_genealogy(case: Case) -> None:
    model = case.twisted
    result = Sampler(model, case.potential, case.num_steps, ess_threshold=1.0).smc(
        Rng(4), [case.at], 9, keep=Keep(features=True, siblings=3)
    )
    samples = samples_of(result, model, [case.prompt])
    logits, log_psi = case.lm.logits(samples.features), model.twist.head(samples.features)
    expected = (torch.log_softmax(logits, -1) - torch.log_softmax(logits + log_psi, -1)).gather(
        -1, samples.siblings.tokens
    )
    torch.testing.assert_close(samples.siblings.log_ratio[samples.mask], expected.detach()[samples.mask])


def test_densities_of_given_sequences_match_those_of_drawing(case: Case) -> None:
    result = Sampler(case.twisted, case.potential, 3).smc(Rng(2), [case.at], 50)
    samples = samples_of(result, case.twisted, [case.prompt])
    again = case.twisted.densities(samples, twist_induced)
    torch.testing.assert_close(again.log_p, samples.log_p)
    torch.testing.assert_close(again.log_q, samples.log_q)


def test_increments_along_lineages_give_back_the_twist(case: Case) -> None:
    # log ψ_t is never recorded: log w_t − log p₀ + log q_t is what it moves by, with φ for ψ_T.
    result = Sampler(case.twisted, case.potential, 3, resampler=multinomial, ess_threshold=1.0).smc(
        Rng(2), [case.at] * 4, 9
    )
    samples = samples_of(result, case.twisted, [case.prompt] * 4)
    log_psi = (smc.increments(result) - samples.log_p + samples.log_q).cumsum(-1)
    expected = case.twisted.carried(case.twisted.densities(samples, twist_induced).log_psi, samples.mask)
    torch.testing.assert_close(log_psi[:, :-1], expected[:, :-1])
    torch.testing.assert_close(log_psi[:, -1], samples.log_phi)


class Zero(BasePotential):
    """φ = 0 everywhere."""

    def log_phi(self, prompts, tokens):  # type: ignore[no-untyped-def]
        return torch.full((tokens.shape[0],), -torch.inf)


def test_bad_input_is_refused(case: Case) -> None:
    def go(model=case.twisted, potential=case.potential, **changes):  # type: ignore[no-untyped-def]
        asked = {"prompts": [case.prompt], "num_particles": 2, "num_steps": 3, "retained": None} | changes
        how = {name: asked[name] for name in ("ess_threshold",) if name in asked}
        sampler = Sampler(model, potential, asked["num_steps"], **how)
        return sampler.smc(Rng(0), cases(asked["prompts"]), asked["num_particles"], retained=asked["retained"])

    with pytest.raises(ConfigError, match="num_particles must be at least 1, not 0"):
        go(num_particles=0)
    with pytest.raises(ConfigError, match="ess_threshold"):
        go(ess_threshold=1.5)
    with pytest.raises(ConfigError, match="retained must have shape"):
        go(retained=torch.zeros(2, 3))
    with pytest.raises(PromptError, match="empty"):
        go(prompts=[torch.tensor([], dtype=torch.long)])
    with pytest.raises(PromptError, match="context of 4"):
        go(num_steps=4)
    with pytest.raises(DeadParticlesError, match=r"every particle of run 0 at step 3 of 3; use more particles"):
        go(potential=Zero())
    with pytest.raises(DeadParticlesError, match="retained"):
        go(potential=Zero(), retained=torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(ResamplingError, match="no conditional form"):
        Resampler("plain", multinomial.scheme, False)(Rng(0), torch.ones(1, 2) / 2, True)
    with pytest.raises(ConfigError, match="did you mean 'tempered'"):
        get_proposal("temperd:0.5")
    with pytest.raises(ConfigError, match=r"'tempered:0\.5'"):
        get_proposal("tempered")
    with pytest.raises(ConfigError, match="between 0"):
        get_proposal("tempered:3")
    with pytest.raises(ConfigError, match="eos must be"):
        TwistedLM(TabularLM.random(2, 2, 0), None, "stop")


@pytest.mark.parametrize("resampler", RESAMPLERS, ids=lambda r: r.name)
def test_a_run_without_a_living_particle_keeps_them_apart(case: Case, resampler: Resampler) -> None:
    """Where every draw had died all became copies of the first, even of those that never resample."""
    dead = TabularHead.twist(torch.full(case.lm.table.shape, -torch.inf, dtype=torch.float64))
    model = TwistedLM(case.lm, dead, case.eos)
    sampler = Sampler(model, None, 3, proposal=base, resampler=resampler)
    drawn, free = (each.draw(Rng(1), [case.at], 64) for each in (sampler, sampler.base))
    assert torch.equal(drawn.tokens, free.tokens)
    assert len(drawn.tokens.unique(dim=0)) > 4


def test_siblings_of_a_dead_prefix_have_no_part(case: Case) -> None:
    table = torch.zeros_like(case.lm.table)
    # After a 2 nothing may follow.
    table[case.lm.start([torch.cat([case.prompt, torch.tensor([2])])]).features] = -torch.inf
    sampler = Sampler(TwistedLM(case.lm, TabularHead.twist(table), case.eos), None, 3)
    samples = sampler.draw(Rng(0), [case.at], 60, keep=Keep(siblings=4))
    assert samples.siblings is not None
    dead = samples.tokens[:, 0] == 2
    assert 5 < int(dead.sum()) < 60
    assert not bool(samples.siblings.log_ratio.isnan().any())
    assert bool(samples.siblings.log_ratio[dead, 1].isneginf().all())


@pytest.mark.parametrize("proposal", ["tempered:0", "defensive:1"])
def test_the_base_model_proposes_under_a_constraint_too(case: Case, proposal: str) -> None:
    table = torch.zeros_like(case.lm.table)
    table[:, 2] = -torch.inf
    model = TwistedLM(case.lm, TabularHead.twist(table), case.eos)
    found = Sampler(model, None, 3, proposal=get_proposal(proposal)).draw(Rng(1), [case.at], 50)
    assert torch.equal(found.tokens, Sampler(model.base, None, 3).draw(Rng(1), [case.at], 50).tokens)
    assert bool((found.tokens == 2).any())


def test_parts_are_no_larger_than_a_batch_at_several_prompts(case: Case) -> None:
    sizes = {}
    for count, num_samples, batch in [(1, 1000, 100), (3, 1000, 100), (3, 100, 100), (7, 30, 100), (2, 101, 100)]:
        parts = list(in_parts(count, num_samples, batch))
        order = [(r, k) for _, rows, columns in parts for r in range(count)[rows] for k in range(num_samples)[columns]]
        assert order == [(r, k) for r in range(count) for k in range(num_samples)]
        assert len({number for number, _, _ in parts}) == len(parts)
        sizes[count, num_samples] = max(len(range(count)[a]) * len(range(num_samples)[b]) for _, a, b in parts)
    assert max(sizes.values()) <= 100
