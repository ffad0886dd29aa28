"""One way to override settings: what is given counts, what is not stays, what is unknown is said."""

import dataclasses

import pytest

from twistlm.core.errors import ConfigError
from twistlm.runs.config import RunConfig

CONFIG = RunConfig(twist="low_rank", twist_options={"rank": 3}, num_draws=64)


def test_what_is_not_given_stays() -> None:
    assert CONFIG.changed() == CONFIG
    assert CONFIG.changed(method=None, twist=None, num_updates=None, source=None, seed=None) == CONFIG
    assert CONFIG.changed(patience=None).training == dataclasses.replace(CONFIG.training, patience=None)


def test_options_of_a_twist_go_with_it() -> None:
    assert CONFIG.changed(twist="low_rank").twist_options == {"rank": 3}
    assert CONFIG.changed(twist="mlp").twist_options == {}
    assert CONFIG.changed(twist="mlp", twist_options={"width": 8}).twist_options == {"width": 8}


def test_a_source_serves_the_roles_that_it_can() -> None:
    exact = CONFIG.changed(method="ctl", source="exact").training
    assert (exact.loss, exact.target_source, exact.intermediate_source) == ("ctl", "exact", "proposal")
    draws = CONFIG.changed(method="ctl", source="draws", intermediate_source="proposal").training
    assert (draws.target_source, draws.intermediate_source) == ("draws", "proposal")
    assert CONFIG.changed(source="draws").training.intermediate_source == "draws"


def test_settings_of_every_part() -> None:
    found = CONFIG.changed(num_draws=0, seed=7, evaluation={"budget": 9}, learning_rate=0.5, weight_decay=0.0)
    assert (found.num_draws, found.seed, found.evaluation.budget, found.training.learning_rate) == (0, 7, 9, 0.5)
    assert found.evaluation.num_samples == CONFIG.evaluation.num_samples


def test_what_is_unknown_is_said() -> None:
    with pytest.raises(ConfigError, match="unknown setting num_update; training takes num_draws, held_out"):
        CONFIG.changed(num_update=3)
    with pytest.raises(ConfigError, match="unknown twist 'nope'"):
        CONFIG.changed(twist="nope")
