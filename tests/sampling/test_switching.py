"""Twists that are switched on and off: the mixture's density is the sum over all patterns, and draws are from it."""

from itertools import product

import pytest
import torch
from torch import Tensor

from tests.cases import Case
from twistlm.core.rng import Rng
from twistlm.sampling.mixture import Pool
from twistlm.sampling.proposals import twist_induced
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.switching import Switching
from twistlm.sampling.twisted import TwistedLM
from twistlm.testing import assert_mean, enumerate_paths
from twistlm.twists.tabular import TabularHead

SWITCHING = Switching(base=0.1, first=0.3, on=0.2, off=0.6)


def probability(off: tuple[bool, ...], chain: Switching) -> float:
    """Of one pattern, by the definition."""
    p = 1.0
    for step, now in enumerate(off):
        turned_on = chain.first if step == 0 else chain.on if off[step - 1] else 1 - chain.off
        p *= 1 - turned_on if now else turned_on
    return chain.base * all(off) + (1 - chain.base) * p


def patterns(num_steps: int) -> list[tuple[bool, ...]]:
    return list(product([False, True], repeat=num_steps))


def by_patterns(log_p: Tensor, log_q: Tensor, chain: Switching) -> Tensor:
    """log q̄ of every prefix [n, T], one pattern after the other."""
    found = [
        torch.where(torch.tensor(off), log_p, log_q).cumsum(-1).exp() * probability(off, chain)
        for off in patterns(log_p.shape[1])
    ]
    return torch.stack(found).sum(0).log()


@pytest.mark.parametrize("chain", [SWITCHING, Switching(), Switching(base=1.0), Switching(0.5, 1.0, 0.5, 0.0)])
def test_the_density_is_the_sum_over_all_patterns(chain: Switching) -> None:
    generator = torch.Generator().manual_seed(0)
    log_p, log_q = (-3 * torch.rand((7, 5), generator=generator, dtype=torch.float64) for _ in range(2))
    # A token that the twist rules out is still to be had while it is off.
    log_q[0, 2] = -torch.inf
    found = chain.log_q(log_p, log_q)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, by_patterns(log_p, log_q, chain), rtol=0, atol=1e-12)


def test_the_density_has_a_gradient() -> None:
    log_p = torch.full((2, 4), -1.0, dtype=torch.float64)
    log_q = torch.full((2, 4), -2.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: SWITCHING.log_q(log_p, x), log_q)


def test_patterns_are_as_frequent_as_the_chain_says() -> None:
    off = SWITCHING.draw(Rng(0), 40_000, 4)
    for pattern in patterns(4):
        assert_mean((off == torch.tensor(pattern)).all(-1).double(), probability(pattern, SWITCHING))


@pytest.mark.parametrize("rows", [1000, 2])
def test_sequences_are_drawn_from_the_mixture(case: Case, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """How often every sequence comes, against the density of all, which sums to one; in one part or in many."""
    monkeypatch.setattr("twistlm.sampling.twisted.VOCABULARY_CHUNK", rows * case.lm.vocab_size)
    truth, model = case.truth, case.twisted
    every = model.densities(truth.samples(model), twist_induced)
    log_q = SWITCHING.log_q(every.log_p, every.log_q)[:, -1].masked_fill(truth.log_p.isneginf(), -torch.inf)
    assert float(log_q.exp().sum()) == pytest.approx(1.0, abs=1e-9)
    # Two rows at a time take long.
    pool = Pool.begun(Rng(1), Sampler(model, case.potential, 3), [case.at], 2000 if rows == 2 else 20_000, SWITCHING)
    for tokens, log_density in zip(truth.tokens, log_q, strict=True):
        assert_mean((pool.samples.tokens == tokens).all(-1).double(), float(log_density.exp()))


def test_a_pool_of_several_twists_is_unbiased_for_every_prefix_and_for_z(case: Case) -> None:
    model = TwistedLM(case.lm, TabularHead.twist(torch.zeros_like(case.lm.table)), case.eos)
    sampler, generator = Sampler(model, case.potential, 3), torch.Generator().manual_seed(1)
    pool = Pool.begun(Rng(3), sampler, [case.at], 2000, SWITCHING)
    for _ in range(2):
        table = 2 * torch.randn(case.lm.table.shape, generator=generator, dtype=torch.float64)
        model.twist.module.load_state_dict({**model.twist.module.state_dict(), "table": table})
        pool = pool.grown(Rng(3), sampler, [case.at], 2000)
    truth, samples, log_ratio = case.truth, pool.samples, pool.log_ratio
    assert_mean((log_ratio[:, -1] + samples.log_phi).exp(), float(truth.log_Z.exp()))
    for t in range(3):
        for token in range(3):
            hit = (samples.tokens[:, t] == token).double()
            assert_mean(log_ratio[:, t].exp() * hit, float((truth.log_p.exp() * (truth.tokens[:, t] == token)).sum()))
    # A third of the draws is p₀'s, and a tenth of the rest.
    assert log_ratio.exp().max() <= 1 / (1 / 3 + SWITCHING.base * 2 / 3) + 1e-9
    unsteered = samples.select(pool.unsteered.nonzero().squeeze(-1))
    for token in range(3):
        hit = (unsteered.tokens[:, 0] == token).double()
        assert_mean(hit, float((truth.log_p.exp() * (truth.tokens[:, 0] == token)).sum()))


def test_draws_that_do_not_matter_are_counted_and_not_kept(case: Case) -> None:
    sampler, cut = Sampler(case.twisted, case.potential, 3), -1.0
    first = Pool.begun(Rng(0), sampler, [case.at], 300, SWITCHING)
    whole, part = (first.grown(Rng(1), sampler, [case.at], 300, least) for least in (-torch.inf, cut))
    matters = whole.samples.log_phi >= cut
    matters[:300] = True
    matter = whole.select(matters.nonzero().squeeze(-1))
    assert part.counts == (300, 300)
    assert 300 < len(part.samples) < 600
    for name in ("log_q", "unsteered", "final_log_ratio"):
        torch.testing.assert_close(getattr(part, name), getattr(matter, name), rtol=0, atol=1e-12)
    assert bool((part.samples.tokens == matter.samples.tokens).all())
    part = part.grown(Rng(3), sampler, [case.at], 100, 1.0)
    assert part.counts == (300, 300, 100)
    assert part.log_q.shape == (3, len(matter.samples), 3)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_particles_that_rest_leave_z_hat_exactly_unbiased(tiny_case: Case, threshold: float) -> None:
    """One particle rests at the first step and one at the second, resampled or not."""
    paused = torch.tensor([[[True, False], [False, True]]])
    sampler = Sampler(tiny_case.twisted, tiny_case.potential, 2, ess_threshold=threshold)
    paths = enumerate_paths(lambda rng: sampler.smc(rng, [tiny_case.at], 2, paused=paused).log_Z_hat.exp())
    assert sum(p for p, _ in paths) == pytest.approx(1.0, abs=1e-12)
    assert sum(p * float(z) for p, z in paths) == pytest.approx(float(tiny_case.truth.log_Z.exp()), abs=1e-12)
