"""Method auto: what it picks is what the potential can do; and methods of presets that have names of their own."""

from dataclasses import replace

import pytest

from tests.architectures import tiny_lm
from tests.training.test_trainer import CONFIG, small_numbers, tiny_target
from twistlm.core.errors import ConfigError
from twistlm.models.tabular import TabularLM
from twistlm.potentials import Function, Infilling, Regex
from twistlm.runs.aim import Aim, aimed
from twistlm.runs.automatic import DRAWS, LEXICAL, LEXICAL_DPG, POOL, automatic, sized
from twistlm.runs.config import RunConfig
from twistlm.runs.experiments import get_preset
from twistlm.runs.train import JUDGING, default_config, train
from twistlm.sampling.prompts import Prompts
from twistlm.sampling.target import Target
from twistlm.training.config import TrainingConfig


def test_it_follows_what_the_potential_can_do(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="twistlm")
    lm, telling = tiny_lm(), Function(small_numbers, log_upper_bound=0.0, prefixes=True)
    assert automatic(Target(lm, telling, "5", 4, eos="ignore")) == LEXICAL_DPG
    assert automatic(tiny_target()) == DRAWS
    unbounded = Target(lm, Function(small_numbers), "5", 4, eos="ignore")
    assert automatic(unbounded) == POOL
    given = Target(lm, Infilling(1), "5", 2, eos="ignore")
    chosen = automatic(given)
    assert [chosen[name] for name in ("method", "source", "twist")] == ["dpg", "draws", "prompted"]
    several = Target(lm, telling, prompts=Prompts(("5", "6")), num_tokens=4, eos="ignore")
    assert automatic(several) == LEXICAL_DPG
    said = [record.message for record in caplog.records if record.name == "twistlm"]
    assert len(said) == 5
    assert all(line.startswith("method auto: ") for line in said)


def test_a_preset_stays_as_small_as_it_is() -> None:
    preset = get_preset("sentiment", "smoke")
    smoke = preset.config("auto")
    training = smoke.training
    assert (training.target_source, training.num_particles, training.num_updates) == ("proposal", 128, 1)
    assert (smoke.num_draws, smoke.folds) == (preset.run.num_draws, preset.run.folds)
    small = get_preset("sentiment", "small")
    assert small.config("auto") == small.config("fresh")
    assert sized(DRAWS, 1) == DRAWS


def test_where_drawing_takes_long_it_learns_from_collected_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twistlm.runs.automatic.LARGEST", 1000)
    potential = Function(small_numbers, log_upper_bound=0.0, prefixes=True)
    target = Target(tiny_lm(), potential, "5", 4, eos="ignore")
    assert automatic(target) == DRAWS | LEXICAL
    config = default_config(target)
    assert (config.training.target_source, config.num_draws, config.folds) == ("draws", 2048, RunConfig().folds)


def test_where_nothing_is_said_it_is_the_default() -> None:
    lm, telling = tiny_lm(), Function(small_numbers, log_upper_bound=0.0, prefixes=True)
    config = default_config(Target(lm, telling, "5", 4, eos="ignore"))
    assert config == replace(RunConfig().changed(**LEXICAL_DPG), num_draws=4096, folds=JUDGING)
    # One that does not say that it can be asked about unfinished texts is not asked about tokens.
    config = default_config(tiny_target())
    assert (config.training.target_source, config.twist) == ("draws", "low_rank")
    # Draws of the base model know nothing of a hard constraint, and without an upper bound there are none.
    numbers = Function(small_numbers, log_upper_bound=0.0)
    constrained = Target(lm, numbers * Regex("[0-9 ]*", mode="fullmatch", constrain=True), "5", 4, eos="ignore")
    assert default_config(constrained).training == RunConfig().changed(**POOL).training
    config = default_config(Target(lm, Function(small_numbers), "5", 4, eos="ignore"))
    assert (config.num_draws, config.training.target_source, config.training.num_particles) == (0, "pool", 64)


def test_what_needs_its_own_draws_has_them() -> None:
    target, fresh = tiny_target(), TrainingConfig("gkl")
    for each in (target, Target(tiny_lm(), Function(small_numbers), "5", 4, eos="ignore")):
        assert default_config(each, "ppo").training == fresh
    asked = Aim(model="stories", potential="regex:pattern=a", prompts=Prompts(("A",)), num_tokens=4)
    own = aimed(None, None, "demo", {}, asked)
    assert own.config("ppo").training == replace(fresh, loss="ppo")
    assert own.config("ctl").training == replace(own.run.training, loss="ctl")
    run = train(target, method="ppo", num_updates=2, num_particles=8, num_draws=64, informed="off")
    assert run.config.training.intermediate_source == "proposal"


def test_a_large_model_is_not_copied_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Target(tiny_lm(), Infilling(1), "5", 2, eos="ignore")
    monkeypatch.setattr("twistlm.runs.automatic.LARGEST", 1000)
    assert automatic(given)["twist"] == "conditional"
    table = Target(TabularLM.random(4, 2, 0), Infilling(1), "0", 2, eos="ignore")
    assert automatic(table)["twist"] == "conditional"


def test_it_is_the_default_where_targets_differ_by_a_condition() -> None:
    target = Target("stories", Infilling(3), "Once upon a time", 4, eos="ignore")
    run = train(target, num_updates=40, num_draws=2048, informed="off")
    assert (run.config.twist, run.config.training.target_source) == ("prompted", "draws")
    held_out = [row["held_out"]["value"] for row in run.history if row["kind"] == "evaluation"]
    assert held_out[-1] < held_out[0] - 0.02


def test_it_trains() -> None:
    potential = Function(small_numbers, log_upper_bound=0.0, prefixes=True)
    run = train(Target(tiny_lm(), potential, "5", 4, eos="ignore"), num_updates=10, num_draws=512, informed="off")
    assert (run.config.training.loss, run.config.training.target_source) == ("dpg", "proposal")
    held_out = [row["held_out"]["value"] for row in run.history if row["kind"] == "evaluation"]
    assert held_out[-1] < held_out[0] - 0.02


def test_what_is_said_besides_counts() -> None:
    potential = Function(small_numbers, log_upper_bound=0.0, prefixes=True)
    target = Target(tiny_lm(), potential, "5", 4, eos="ignore")
    run = train(target, config=CONFIG, method="auto", source="draws", learning_rate=None, num_updates=1, num_draws=64)
    assert (run.config.training.target_source, run.config.training.learning_rate) == ("draws", 6e-3)


def test_a_method_of_a_preset_may_have_a_name_of_its_own() -> None:
    preset = get_preset("sentiment", "small")
    pooled = preset.config("pooled")
    assert (pooled.training.loss, pooled.training.target_source, pooled.twist) == ("dpg", "pool", "lexical")
    # Looked at as often as the published methods are.
    assert pooled.training.evaluate_every == preset.run.training.evaluate_every
    # As many sequences as the others draw.
    other = get_preset("sentiment", "small").config("ctl")
    assert pooled.training.num_particles * pooled.training.num_updates == (
        other.training.num_particles * other.training.num_updates
    )
    with pytest.raises(ConfigError, match="unknown loss 'pooled'"):
        get_preset("infilling", "small").config("pooled")
