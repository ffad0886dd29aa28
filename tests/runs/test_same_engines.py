"""Whoever does the work, the same comes out bit for bit: on the bundled models, by all engines."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from tests.kills import timeless
from twistlm import Prompts, Target, engine, train
from twistlm.certificates import fresh
from twistlm.certificates.effort import Search
from twistlm.certificates.rare_events import probability
from twistlm.core.rng import Rng
from twistlm.core.storage import as_json
from twistlm.core.work import Engine
from twistlm.potentials import Classifier, Regex
from twistlm.runs.train import default_config
from twistlm.sampling import mixture

PROMPTS = Prompts.read(Path(__file__).parents[1] / "prompts.txt")
ENGINES = ("local", "ray")


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[str, Engine]]:
    yield {name: engine(name, jobs=2) for name in ENGINES}
    ray.shutdown()


def target(count: int) -> Target:
    return Target("stories", Classifier("toxicity", "toxic"), prompts=PROMPTS.select(range(count)), num_tokens=4)


@pytest.mark.nightly
def test_collections_of_a_set_of_prompts(engines: dict[str, Engine], tmp_path: Path) -> None:
    """More than one wave of chunks."""
    asked = {"max_draws": 800, "chunk": 32}
    target(12).collect(Rng(0), path=tmp_path / "here", **asked)
    for name, each in engines.items():
        target(12).collect(Rng(0), path=tmp_path / name, engine=each, **asked)
        assert (tmp_path / name).read_bytes() == (tmp_path / "here").read_bytes(), name


def test_collections_under_a_constraint(engines: dict[str, Engine], tmp_path: Path) -> None:
    """What has been ruled out goes along with every chunk."""
    phi = Regex(" [a-z]+ (girl|boy|cat)", mode="fullmatch", constrain=True)
    prompts = Prompts(("Once upon a time, there was a", "One day, there was a"), names=("a", "b"))
    of = Target("stories", phi, prompts=prompts, num_tokens=3)
    asked = {"max_draws": 640, "chunk": 32}
    collected = of.collect(Rng(0), path=tmp_path / "here", **asked)
    assert max(collected.log_uppers.values()) < -1.0
    for name, each in engines.items():
        of.collect(Rng(0), path=tmp_path / name, engine=each, **asked)
        assert (tmp_path / name).read_bytes() == (tmp_path / "here").read_bytes(), name


def test_probabilities(engines: dict[str, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds and fresh draws in several pieces each, with a twist that every round changes."""
    # Of the pieces that are planned here; those of fresh draws fit one batch of whoever draws them.
    monkeypatch.setattr(mixture, "BATCH", 64)
    monkeypatch.setattr(fresh, "CHUNK", 64)
    search = Search(num_draws=128, max_rounds=2, num_samples=192, num_events=2)
    here = probability(target(2), [0.02], search=search)
    for name, each in engines.items():
        assert probability(target(2), [0.02], search=search, engine=each) == here, name


def test_certificates_at_prompts_that_training_never_saw(engines: dict[str, Engine]) -> None:
    config = replace(default_config(target(1)), num_draws=0)
    run = train(target(1), config=config, source="proposal", num_particles=16, num_updates=2, evaluate_every=2)
    asked = {"prompts": list(PROMPTS.select(range(2, 5)).entries), "num_particles": 4, "num_samples": 8, "budget": 8}
    here = run.evaluate(num_draws=48, **asked)
    for name, each in engines.items():
        found = run.evaluate(num_draws=48, engine=each, **asked)
        assert timeless(as_json(found)) == timeless(as_json(here)), name
