"""The exact divergences beside the estimates in docs/results.md, checked by other ways to the same numbers."""

from dataclasses import replace

import pytest
import torch

from papers.zhao2024 import exact_tabular
from papers.zhao2024.exact_infilling import Pairs, all_pairs, compare, divergences
from tests.architectures import VOCAB, tiny_lm
from twistlm import Run, Target, train
from twistlm.core.rng import Rng
from twistlm.potentials import Infilling, evaluate
from twistlm.runs.config import EvaluationConfig, RunConfig
from twistlm.sampling.proposals import twist_induced
from twistlm.sampling.sampler import Sampler
from twistlm.training.config import TrainingConfig

CONFIG = RunConfig(
    twist="conditional",
    training=TrainingConfig(
        loss="dpg", target_source="exact", num_particles=100, num_cases=100, num_updates=12, learning_rate=1e-2,
        evaluate_every=6, shrinkages=(),
    ),
    num_draws=512,
    chunk=512,
    evaluation=EvaluationConfig((2, 8), 64, 256),
)  # fmt: skip


@pytest.fixture(scope="module")
def trained() -> tuple[Run, torch.Tensor, Pairs]:
    run = train(Target(tiny_lm("llama", scale=20.0), Infilling(1), "5", 2, eos="ignore"), config=CONFIG)
    evaluation = run.fold("evaluation")
    assert evaluation is not None
    conditions = evaluation.exact.take(64).samples.conditions
    assert conditions is not None
    conditions = conditions.squeeze(-1)
    return run, conditions, all_pairs(run.target.lm, run.target.prompt_tokens, conditions, left_out=0.0)


def test_every_pair_has_the_density_that_the_package_gives_it(trained: tuple[Run, torch.Tensor, Pairs]) -> None:
    """For one condition, by the package's own densities and potential of all V² sequences."""
    run, conditions, pairs = trained
    assert len(pairs.firsts) == VOCAB
    tokens = torch.cartesian_prod(pairs.firsts, torch.arange(VOCAB))
    some = Sampler(run.target.twisted(), None, 2).draw(Rng(0), run.target.cases, len(tokens))
    given = conditions[:1].expand(len(tokens), 1)
    samples = replace(some, tokens=tokens, conditions=given, features=None)
    found = run.model.densities(samples, twist_induced)
    log_phi = evaluate(run.target.bound_potential, samples.prompts, tokens, given)
    torch.testing.assert_close(pairs.log_joint.flatten(), found.log_p.sum(-1).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(pairs.log_phi[0].flatten().double(), log_phi, rtol=0, atol=1e-4)
    log_sigma = (found.log_p.sum(-1).double() + log_phi).log_softmax(-1)
    log_q = found.log_q.sum(-1).double()
    exact = divergences(run.model, replace(pairs, log_phi=pairs.log_phi[:1]), conditions[:1])
    assert float(exact["kl_q_target"]) == pytest.approx(float((log_q.exp() * (log_q - log_sigma)).sum()), abs=1e-3)
    assert float(exact["kl_target_q"]) == pytest.approx(float((log_sigma.exp() * (log_sigma - log_q)).sum()), abs=1e-3)
    assert float(exact["left_out"]) == pytest.approx(0.0, abs=1e-5)


def test_the_certificate_agrees_with_the_sums(trained: tuple[Run, torch.Tensor, Pairs]) -> None:
    run, conditions, pairs = trained
    found = compare(run, pairs, conditions, seed=5)
    for name in ("kl_q_target", "kl_target_q"):
        estimate, slack = found["estimate"][name], 0.1
        assert estimate["low"] - slack < found["exact"][name] < estimate["high"] + slack
    assert found["exact"]["kl_q_target"] > 0.05


def test_pairs_without_rare_first_tokens_lose_little(trained: tuple[Run, torch.Tensor, Pairs]) -> None:
    run, conditions, whole = trained
    pairs = all_pairs(run.target.lm, run.target.prompt_tokens, conditions, left_out=1e-2)
    assert len(pairs.firsts) < VOCAB
    assert 1 - float(pairs.log_joint.exp().sum()) <= 1e-2
    few, all_ = (divergences(run.model, each, conditions) for each in (pairs, whole))
    assert 0 < float(few["left_out"].mean()) < 0.1
    assert float(few["kl_target_q"].mean()) == pytest.approx(float(all_["kl_target_q"].mean()), abs=0.1)


@pytest.mark.parametrize("method", ["fudge", "gkl"])
def test_methods_on_a_table_approach_the_target(method: str) -> None:
    first, last = (exact_tabular.run(method, seed=0, updates=updates) for updates in (1, 40))
    assert last["exact"]["kl_q_target"] < 0.8 * first["exact"]["kl_q_target"]
    for name in ("kl_q_target", "kl_target_q"):
        assert last["estimate"][name]["low"] - 0.05 < last["exact"][name] < last["estimate"][name]["high"] + 0.05
