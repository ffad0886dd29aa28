"""What weighs beside a twist, from training through the folder to samples and certificates; real weights."""

import math
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from twistlm import Run, RunConfig, Target, certify, train
from twistlm.core.errors import ConfigError, RunError
from twistlm.core.rng import Rng
from twistlm.core.storage import load_tensors, save_tensors
from twistlm.potentials import Classifier, Function, Infilling, Regex, Threshold
from twistlm.potentials.base import BasePotential
from twistlm.potentials.prefixes import prefix_scores, scores_prefixes
from twistlm.runs.config import EvaluationConfig
from twistlm.training.config import TrainingConfig

TOXIC = Classifier("toxicity", "toxic")
CONFIG = RunConfig(
    twist="lexical",
    training=TrainingConfig(
        loss="gkl", target_source="draws", intermediate_source="draws", num_particles=512, num_updates=12,
        evaluate_every=4, learning_rate=3e-3, weight_decay=0.3,
    ),
    num_draws=4096,
    num_siblings=0,
    evaluation=EvaluationConfig((4,), 32, 32),
)  # fmt: skip


def target(num_tokens: int = 6) -> Target:
    return Target("stories", TOXIC, "Once upon a time, there was a", num_tokens, eos="ignore")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(target(), config=CONFIG, seed=1, out=tmp_path_factory.mktemp("informed") / "run")


def test_training_finds_what_weighs_and_the_folder_keeps_it(run: Run) -> None:
    assert run.informed is not None
    assert run.informed.coefficients[:, 2].any()
    (row,) = [row for row in run.history if row["kind"] == "informed"]
    assert row["steps"] == list(run.informed.steps)
    assert row["asks"]
    assert min(row["gains"]) > 0
    assert run.folder is not None
    for again in (Run.load(run.folder.path), pickle.loads(pickle.dumps(run))):
        assert again.informed.steps == run.informed.steps
        assert again.informed.coefficients.equal(run.informed.coefficients)
        one, other = (each.sample(8, seed=4) for each in (run, again))
        assert one.texts == other.texts
        assert one.weights.equal(other.weights)


@pytest.mark.nightly
def test_log_Z_hat_spreads_less_than_by_the_twist_alone(run: Run) -> None:
    spread = {}
    for name, options in (("informed", {}), ("twist", {"informed": False}), ("none", {"ess_threshold": 0.0})):
        sampler = run.sampler(**options)
        # Of 150 runs the ratio scatters by a tenth, and another processor's rounding is another draw of it.
        spread[name] = float(sampler.smc(Rng(2), list(run.target.cases) * 600, 32).log_Z_hat.std())
    # Resampling pays, now that weights know what resampling asks.
    assert spread["informed"] < 0.9 * spread["twist"], spread
    assert spread["informed"] < 1.1 * spread["none"], spread


def test_certify_weighs_by_it_at_the_target_that_it_was_fitted_to(run: Run) -> None:
    assert run.folder is not None
    alone = Run.load(run.folder.path)
    alone.informed = None

    def lower(goal: Target | Run, proposal: Run) -> float:
        found = certify(goal, proposal, num_particles=(32,), num_samples=32, budget=1024, methods=("smc",), seed=3)
        return found.bounds[0].lower.value

    # The same random numbers, so that weights alone differ.
    assert lower(run, run) != lower(run, alone)
    assert lower(target(5), run) == lower(target(5), alone)


def test_samples_and_estimates_agree_with_the_base_model(run: Run) -> None:
    base = run.fold("evaluation").draws.log_phi
    truth, error = base.exp().mean(), base.exp().std() / math.sqrt(len(base))
    found = run.sampler().smc(Rng(3), list(run.target.cases) * 150, 16).log_Z_hat.exp()
    assert abs(found.mean() - truth) < 4 * (found.std() / math.sqrt(len(found)) + error)


def test_off_and_never(tmp_path: Path) -> None:
    small = replace(CONFIG, num_draws=1024, training=replace(CONFIG.training, num_updates=2, evaluate_every=2))
    off = train(target(3), config=small, seed=0, informed="off")
    assert off.informed is None
    never = train(target(3), config=small, seed=0, informed="never")
    assert never.informed is not None
    assert not never.informed.coefficients[:, 2].any()
    one, other = (each.model.twist.module.state_dict() for each in (off, never))
    assert all(one[name].equal(other[name]) for name in one)
    for wrong in (0, -3, "often", True):
        with pytest.raises(ConfigError, match="informed must be"):
            replace(CONFIG.training, informed=wrong)
    assert replace(CONFIG.training, informed="4").informed == 4


def test_a_run_of_before_has_none(run: Run, tmp_path: Path) -> None:
    assert run.folder is not None
    tensors, about = load_tensors(run.folder.twist)
    kept = run.folder.twist.read_bytes()
    try:
        save_tensors(run.folder.twist, tensors, {k: v for k, v in about.items() if k != "informed"})
        assert Run.load(run.folder.path).informed is None
        save_tensors(run.folder.twist, tensors, {**about, "informed": {"steps": [1], "coefficients": [["x"]]}})
        with pytest.raises(RunError, match="weighs beside"):
            Run.load(run.folder.path)
    finally:
        run.folder.twist.write_bytes(kept)


def test_targets_with_conditions_are_informed_too() -> None:
    filling = Target("stories", Infilling(2), "Once upon a time, there was a", 4, eos="ignore")
    config = RunConfig(
        twist="conditional",
        training=TrainingConfig(
            loss="ctl", target_source="exact", intermediate_source="proposal", num_particles=64, num_updates=8,
            num_cases=8, evaluate_every=4, patience=None,
        ),
        num_draws=64,
        num_siblings=0,
        evaluation=EvaluationConfig((4,), 16, 16),
    )  # fmt: skip
    run = train(filling, config=config, seed=0)
    assert run.informed is not None
    drawn = run.sample(4, num_particles=8, condition=run.fold("evaluation").exact.cases[0].given)
    assert len(drawn.texts) == 4


@pytest.mark.parametrize(
    ("potential", "can"),
    [
        (TOXIC, True),
        (TOXIC**5.0, True),
        (Threshold(TOXIC, 0.5), True),
        (Regex("cat"), True),
        (Regex("cat", mode="fullmatch"), False),
        (Regex("cat") * Regex("x", mode="fullmatch"), True),
        (Function(lambda texts: [0.0] * len(texts)), False),
        (Function(lambda texts: [0.0] * len(texts), prefixes=True), True),
    ],
    ids=["classifier", "power", "threshold", "search", "fullmatch", "product", "function", "said so"],
)
def test_potentials_say_whether_they_can_tell(potential: BasePotential, can: bool) -> None:
    bound = potential.bind(target().lm)
    assert scores_prefixes(bound) == can
    if can:
        tokens = torch.tensor([[11, 12, 13], [14, 15, 16]])
        assert prefix_scores(bound, [target().prompt_tokens] * 2, tokens).isfinite().all()


def test_a_threshold_tells_how_near_a_text_is() -> None:
    lm = target().lm
    tokens = torch.stack([lm.encode(" stupid ugly"), lm.encode(" happy little")[: len(lm.encode(" stupid ugly"))]])
    prompts = [target().prompt_tokens] * 2
    scores = prefix_scores(Threshold(TOXIC, 0.99, eps=1e-16).bind(lm), prompts, tokens)
    assert scores[0] > scores[1]
    assert prefix_scores(Threshold(TOXIC, 0.01, direction="<=").bind(lm), prompts, tokens).equal(-scores)
