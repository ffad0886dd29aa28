"""The learning rate over the updates: what it is in each, and what a fall is for."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.cases import make_case
from tests.training.test_trainer import CONFIG, tiny_target
from twistlm import train
from twistlm.core.errors import ConfigError
from twistlm.core.estimates import Estimate
from twistlm.core.rng import Rng
from twistlm.runs.automatic import LEXICAL_DPG
from twistlm.runs.config import RunConfig
from twistlm.sampling.sampler import Sampler
from twistlm.training import trainer
from twistlm.training.config import TrainingConfig
from twistlm.training.sources import Setting
from twistlm.training.trainer import Trainer


@pytest.mark.parametrize(
    ("decay_after", "expected"),
    [
        (None, [0.4, 0.4, 0.4, 0.4]),
        (0, [0.4, 0.3, 0.2, 0.1]),
        (2, [0.4, 0.4, 0.4, 0.2]),
        (4, [0.4, 0.4, 0.4, 0.4]),
        (9, [0.4, 0.4, 0.4, 0.4]),
    ],
)
def test_steps_are_of_the_rate_of_their_update(
    decay_after: int | None, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, seen = trainer.step, []

    def step(optimiser: torch.optim.Optimizer, *given: Any) -> float:
        seen.append([group["lr"] for group in optimiser.param_groups])
        return original(optimiser, *given)

    monkeypatch.setattr(trainer, "step", step)
    training = replace(CONFIG.training, num_updates=4, num_minibatches=3, learning_rate=0.4, decay_after=decay_after)
    train(tiny_target(), config=replace(CONFIG, training=training), informed="off")
    assert torch.tensor(seen).view(4, 3).tolist() == [[pytest.approx(rate)] * 3 for rate in expected]


class Later:
    """A judge to whom the last twist is the best, whatever it is."""

    def __init__(self) -> None:
        self.looks = 0

    def __call__(self, rng: Rng, sampler: Sampler) -> Estimate:
        self.looks += 1
        return Estimate(-self.looks, -self.looks, -self.looks, 1)


@pytest.mark.parametrize("seed", range(4))
def test_a_fall_ends_nearer_the_truth_than_noise_of_batches_allows(seed: int) -> None:
    case, left = make_case(), {}
    for decay_after in (None, 0):
        model = case.twisted_for("dpg", torch.zeros_like(case.lm.table))
        config = TrainingConfig(
            loss="dpg", decay_after=decay_after, num_particles=200, num_updates=120, learning_rate=0.2,
            weight_decay=0.0, evaluate_every=120, patience=None, shrinkages=(), informed="off",
        )  # fmt: skip
        setting = Setting(Sampler(model, case.potential, 3), [case.at])
        Trainer(Rng(seed), setting, config, Later()).train()
        left[decay_after] = case.truth.kl_target_q(model) + case.truth.kl_q_target(model)
    assert left[0] < 0.8 * left[None]


@pytest.mark.parametrize(("decay_after", "done"), [(None, 8), (20, 8), (8, 30), (0, 30)])
def test_patience_waits_for_what_a_fall_is_to_bring(decay_after: int | None, done: int) -> None:
    case = make_case()
    setting = Setting(Sampler(case.twisted_for("dpg", torch.zeros_like(case.lm.table)), case.potential, 3), [case.at])
    config = TrainingConfig(
        loss="dpg", decay_after=decay_after, num_particles=20, num_updates=30, evaluate_every=2, patience=8,
        shrinkages=(), informed="off",
    )  # fmt: skip
    same = Trainer(Rng(0), setting, config, lambda rng, sampler: Estimate(0.0, 0.0, 0.0, 1))
    same.train()
    assert (same.progress.best_update, same.progress.done) == (0, done)


def test_none_is_a_value() -> None:
    config = RunConfig().changed(**LEXICAL_DPG)
    assert config.training.decay_after == 24
    assert config.changed(decay_after=None).training.decay_after is None


@pytest.mark.parametrize(
    ("given", "said"), [(-1, "decay_after must be at least 0, not -1"), (0.5, "decay_after must be a whole number")]
)
def test_what_is_no_number_of_updates_is_refused(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        train(tiny_target(), config=CONFIG, decay_after=given)
