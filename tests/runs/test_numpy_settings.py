"""Numbers of numpy are taken wherever Python's are, and leave no trace: neither in files nor in what is drawn."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.potentials.test_specs import POTENTIALS
from twistlm import Prompts, Run, Search, Target, probability, train
from twistlm.certificates.spending import Effort, Spending
from twistlm.core.rng import Rng
from twistlm.core.storage import as_json, save_json
from twistlm.potentials import Regex, Threshold, from_spec, spec
from twistlm.runs.config import EvaluationConfig, RunConfig
from twistlm.training.config import TrainingConfig

# Numbers that float32 has, too, so that nothing is rounded.
HALF, QUARTER = np.float32(0.5), np.float32(0.25)


def numpy_of(value: Any) -> Any:
    """The same with numpy's numbers."""
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, int):
        return np.int64(value)
    if isinstance(value, float):
        return np.float64(value)
    if isinstance(value, tuple) and value and all(isinstance(each, int | float) for each in value):
        return np.array(value)
    return value


def with_numpy(settings: Any) -> Any:
    """The same dataclass, made of numpy's numbers."""
    fields = [field.name for field in dataclasses.fields(settings) if field.init]
    return dataclasses.replace(settings, **{name: numpy_of(getattr(settings, name)) for name in fields})


def in_types(value: Any) -> str:
    """All of it, and every type in it."""
    return json.dumps(dataclasses.asdict(value)) + repr(value)


@pytest.mark.parametrize("name", POTENTIALS)
def test_every_potential(name: str) -> None:
    potential = POTENTIALS[name]
    found = with_numpy(potential)
    assert json.dumps(spec(found)) == json.dumps(spec(potential))
    # Equal numbers need not be of one type.
    assert (found, repr(found)) == (potential, repr(potential))


def test_a_number_in_a_potential_of_ones_own() -> None:
    """Whose class knows nothing of numpy."""
    potential = Regex("a")
    object.__setattr__(potential, "eps", HALF)
    assert from_spec(json.loads(json.dumps(spec(potential)))) == Regex("a", eps=0.5)


@pytest.mark.parametrize(
    "settings",
    [
        TrainingConfig(informed=3, shrinkages=(0.0, 0.5), decay_after=4),
        RunConfig(num_draws=16, twist_options={"rank": 3}, seed=4),
        EvaluationConfig(),
        Search(num_draws=64),
        Spending(),
        Effort(0.5, 100),
        Prompts(("a", "b"), weights=(0.25, 0.75)),
    ],
    ids=lambda settings: type(settings).__name__,
)
def test_every_setting(settings: Any) -> None:
    assert with_numpy(settings) == settings
    assert in_types(with_numpy(settings)) == in_types(settings)


def test_numbers_inside_of_options() -> None:
    config = RunConfig().changed(twist_options={"rank": np.int64(3)}, num_updates=np.int64(3), learning_rate=HALF)
    assert json.dumps(as_json(config)) == json.dumps(
        as_json(RunConfig().changed(twist_options={"rank": 3}, num_updates=3, learning_rate=0.5))
    )


@pytest.mark.parametrize("given", [8, np.int64(8), [8], np.array([8]), (n for n in [np.int64(8)])])
def test_one_number_of_particles_or_several(given: Any) -> None:
    settings = EvaluationConfig(num_particles=given)
    assert settings == EvaluationConfig(num_particles=(8,))
    assert Spending(num_particles=settings.num_particles[0]).num_particles == (8,)  # type: ignore[arg-type]


def test_the_same_seed_is_the_same_stream() -> None:
    assert Rng(np.int64(3)).uniform((1, 4)).equal(Rng(3).uniform((1, 4)))  # type: ignore[arg-type]


def test_files_take_what_is_left(tmp_path: Path) -> None:
    save_json(tmp_path / "a.json", {"a": np.int64(3), "b": [np.float32(0.5)], "c": np.array([[1, 2]])})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 3, "b": [0.5], "c": [[1, 2]]}
    with pytest.raises(TypeError, match="object has no JSON form"):
        save_json(tmp_path / "b.json", object())


def test_a_run_of_numpy_s_numbers_is_opened_again(tmp_path: Path) -> None:
    """Its potential could not be written, so the folder could not be opened."""
    asked = {"num_updates": 2, "num_particles": 8, "num_draws": 16, "seed": 3}
    runs = []
    for name, half, quarter, of in (("numpy", HALF, QUARTER, np.int64), ("python", 0.5, 0.25, int)):
        potential = Threshold(Regex("e", eps=quarter), half, eps=quarter)
        target = Target("stories", potential, "Once upon", of(3))
        train(target, out=tmp_path / name, learning_rate=half, **{key: of(each) for key, each in asked.items()})
        run = Run.load(tmp_path / name)
        runs.append((run, (tmp_path / name / "config.json").read_text()))
    (one, said), (other, expected) = runs
    assert one.target.fingerprint == other.target.fingerprint
    assert json.loads(said) == json.loads(expected)
    one.evaluate(num_particles=np.array([2, 4]), num_samples=np.int64(8), seed=np.int64(2))
    assert one.sample(np.int64(4), seed=np.int64(1)).texts == other.sample(4, seed=1).texts


def test_thresholds_from_anywhere(tmp_path: Path) -> None:
    target, search = Target("stories", Regex("e", eps=0.25), "Once upon", 2), Search(64, max_rounds=1, num_samples=64)
    found = probability(target, [0.5], search=search, out=tmp_path / "found")
    for given in (HALF, 0.5, np.array([0.5]), (each for each in [HALF])):
        again = probability(target, given, search=search, seed=np.int64(0), out=tmp_path / "found", exists="resume")
        assert [as_json(each) for each in again] == [as_json(each) for each in found]
