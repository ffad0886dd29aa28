"""The pool: weights against the mixture that made it are unbiased, whichever proposals made it; and it is resumed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.cases import Case
from tests.training.test_trainer import CONFIG, comparable, tiny_target
from twistlm import Target, train
from twistlm.core.errors import ConfigError
from twistlm.core.logmath import normalise
from twistlm.core.rng import Rng
from twistlm.potentials import Infilling
from twistlm.sampling.mixture import PARTS, Pool, updates_until_growth
from twistlm.sampling.proposals import twist_induced
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.twisted import TwistedLM
from twistlm.testing import assert_mean
from twistlm.training.trainer import Trainer
from twistlm.twists.tabular import TabularHead

GENERATIONS = (400, 3000, 1200)


def grown(case: Case) -> tuple[Pool, TwistedLM]:
    """A pool of draws from p₀ and from two twists that are wrong in different ways."""
    model = TwistedLM(case.lm, TabularHead.twist(torch.zeros_like(case.lm.table)), case.eos)
    sampler, generator = Sampler(model, case.potential, 3), torch.Generator().manual_seed(1)
    pool = Pool.begun(Rng(3), sampler, [case.at], GENERATIONS[0])
    for count in GENERATIONS[1:]:
        table = torch.randn(case.lm.table.shape, generator=generator, dtype=torch.float64)
        model.twist.module.load_state_dict({**model.twist.module.state_dict(), "table": table})
        pool = pool.grown(Rng(3), sampler, [case.at], count)
    return pool, model


def test_densities_are_those_of_every_generation(case: Case) -> None:
    pool, model = grown(case)
    assert pool.log_q.shape == (3, sum(GENERATIONS), 3)
    for k, twist in enumerate(pool.twists):
        model.twist.module.load_state_dict(twist)
        expected = model.densities(pool.samples, twist_induced).log_q.cumsum(-1)
        torch.testing.assert_close(pool.log_q[k], expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(pool.log_q[0], pool.samples.log_p.cumsum(-1), rtol=0, atol=1e-9)


def test_weights_against_the_mixture_are_unbiased_for_every_prefix_and_for_z(case: Case) -> None:
    pool, _ = grown(case)
    samples, log_ratio = pool.samples, pool.log_ratio
    assert_mean((log_ratio[:, -1] + samples.log_phi).exp(), float(case.truth.log_Z.exp()))
    assert_mean(log_ratio[:, -1].exp(), 1.0)
    for t in range(3):
        for token in range(3):
            hit = (samples.tokens[:, t] == token).double()
            truth = case.truth
            expected = float((truth.log_p.exp() * (truth.tokens[:, t] == token)).sum())
            assert_mean(log_ratio[:, t].exp() * hit, expected)
    # The balance heuristic bounds the weights by 1 / (share of p₀); what is drawn by weight at most doubles them.
    assert log_ratio.exp().max() <= sum(GENERATIONS) / GENERATIONS[0] + 1e-9
    assert pool.draw(Rng(0), [case.at], 500)[1].exp().max() <= 2 * sum(GENERATIONS) / GENERATIONS[0] + 1e-9


def test_half_of_a_part_is_drawn_by_weight(case: Case) -> None:
    """A target that the pool hardly has: few draws of it, and every part of the pool shows them."""
    pool, _ = grown(case)
    rare = torch.full_like(pool.samples.log_phi, -torch.inf)
    rare[::500] = 0.0
    pool = replace(pool, samples=replace(pool.samples, log_phi=rare))
    samples, _ = pool.draw(Rng(0), [case.at], 100)
    assert samples.log_phi.isfinite().sum() >= 45
    parts = [pool.draw(Rng(k), [case.at], 100) for k in range(500)]
    found = torch.stack([(ratio[:, -1] + part.log_phi).exp().mean() for part, ratio in parts])
    # One in sixteen of the weight is the most that a draw has, whichever of the few there are.
    held = pool.truncated([case.at], PARTS).samples.log_phi
    assert_mean(found, float((pool.log_ratio[:, -1] + held).exp().mean()))
    hopeless = replace(pool.samples, log_phi=torch.full_like(rare, -torch.inf))
    assert replace(pool, samples=hopeless).draw(Rng(0), [case.at], 100)[1].isfinite().all()


def test_one_draw_is_not_all_that_is_learned_from(case: Case) -> None:
    """One draw that outweighs the others by e^20, as where a target is rare: it has one part in sixteen."""
    pool, _ = grown(case)
    torch.testing.assert_close(pool.truncated([case.at], PARTS).samples.log_phi, pool.samples.log_phi, rtol=0, atol=0)
    log_phi = pool.samples.log_phi.clone()
    log_phi[7] += 20.0
    pool = replace(pool, samples=replace(pool.samples, log_phi=log_phi))
    found = pool.truncated([case.at], PARTS).samples.log_phi
    log_w = pool.final_log_ratio + found
    assert float(normalise(log_w).max()) == pytest.approx(1 / PARTS)
    assert int(normalise(log_w).argmax()) == 7
    torch.testing.assert_close(found[8:], log_phi[8:])
    # That is what is drawn.
    parts = [pool.draw(Rng(k), [case.at], 400) for k in range(100)]
    assert_mean(
        torch.stack([(ratio[:, -1] + part.log_phi).exp().mean() for part, ratio in parts]), float(log_w.exp().mean())
    )


def test_it_grows_by_what_the_others_draw() -> None:
    assert [update for update in range(300) if updates_until_growth(update) is not None] == [0, 16, 64, 256]
    assert [updates_until_growth(update) for update in (0, 16, 64, 256)] == [16, 48, 192, 768]
    config = replace(CONFIG, num_draws=256, num_siblings=0)
    rows = train(
        tiny_target(), config=config, method="gkl", num_updates=40, num_particles=50, target_source="pool",
        intermediate_source="pool",
    )  # fmt: skip
    assert sum(row["kind"] == "update" for row in rows.history) == 40


def test_an_interrupted_run_refills_it_and_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twistlm.training.trainer.CHECKPOINT_SECONDS", 0.0)
    config = replace(CONFIG, num_draws=256, num_siblings=0)
    settings = {"method": "gkl", "num_updates": 24, "num_particles": 30, "target_source": "pool",
                "intermediate_source": "pool"}  # fmt: skip
    train(tiny_target(), config=config, out=tmp_path / "whole", **settings)
    update = Trainer._update

    def interrupted(self: Trainer) -> dict:
        if self.progress.done == 20:
            raise KeyboardInterrupt
        return update(self)

    monkeypatch.setattr(Trainer, "_update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_target(), config=config, out=tmp_path / "cut", **settings)
    monkeypatch.setattr(Trainer, "_update", update)
    train(tiny_target(), config=config, out=tmp_path / "cut", exists="resume", **settings)
    whole, cut = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    )
    assert comparable(whole) == comparable(cut)
    assert (tmp_path / "whole" / "twist.safetensors").read_bytes() == (
        tmp_path / "cut" / "twist.safetensors"
    ).read_bytes()


def test_targets_with_conditions_are_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    target = Target(tiny_target().lm, Infilling(1), "5", 2, eos="ignore")
    config = replace(CONFIG, twist="conditional", num_draws=64)
    with pytest.raises(ConfigError, match="knows one target only"):
        train(target, config=config, num_updates=1, method="gkl", source="pool", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
