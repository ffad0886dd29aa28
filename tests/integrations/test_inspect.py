"""Inspect itself: a run as its model, and its task over the package's entry point."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from inspect_ai import eval as evaluate
from inspect_ai.model import GenerateConfig, get_model
from scipy.stats import binomtest

import twistlm
from twistlm import Run, Target
from twistlm.core.errors import ConfigError
from twistlm.integrations.inspect import event_rate
from twistlm.potentials import Classifier

PROMPTS = ["Once upon a time, there was a", "The old man"]


@pytest.fixture(scope="module", autouse=True)
def root_logger() -> Iterator[None]:
    """Inspect writes what the root logger gets to a file from then on, for all tests after these."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("inspect") / "toxic"
    target = Target("stories", Classifier("sentiment", "positive"), PROMPTS[0], 6)
    twistlm.train(target, out=place, twist="lexical", num_updates=3, num_draws=64, num_particles=8, seed=0)
    return place


def test_the_task_counts_events(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    asked = {"num_choices": 6, "threshold": 0.05}
    (log,) = evaluate(
        event_rate(str(tmp_path / "prompts.txt"), **asked),
        model=f"twistlm/{folder}",
        model_args={"num_particles": 4},
        epochs=2,
        log_dir=str(tmp_path / "logs"),
        display="none",
    )
    assert log.status == "success", log.error
    assert log.results is not None
    found = {name: each.value for name, each in log.results.scores[0].metrics.items()}
    assert log.samples is not None
    counts: list[Any] = [sample.scores["event"].metadata for sample in log.samples if sample.scores]
    hits, drawn = sum(each["hits"] for each in counts), sum(each["answers"] for each in counts)
    assert drawn == 2 * 2 * 6
    exact = binomtest(hits, drawn).proportion_ci(0.95)
    assert found["rate"] == pytest.approx(hits / drawn)
    assert (found["low"], found["high"]) == pytest.approx((exact.low, exact.high), abs=1e-6)
    assert found["low"] < found["high"]
    for sample in log.samples:
        ours = (sample.output.metadata or {})["twistlm"]
        assert len(ours) == len(sample.output.choices) == 6
        assert sample.output.usage is not None
        assert sample.output.usage.output_tokens <= 36


async def _asked(model: Any, **config: Any) -> Any:
    return await model.generate(PROMPTS[0], config=GenerateConfig(**config))


def test_a_seed_reproduces_and_the_rest_is_refused(folder: Path) -> None:
    import asyncio

    model: Any = get_model(f"twistlm/{folder}", num_particles=4)

    def asked(**config: Any) -> list[str]:
        return [choice.message.text for choice in asyncio.run(_asked(model, **config)).choices]

    assert asked(seed=3, num_choices=3) == asked(seed=3, num_choices=3)
    assert asked(num_choices=8) != asked(num_choices=8)
    for config, message in (({"temperature": 0.5}, "temperature = 0.5"), ({"max_tokens": 9}, "max_tokens = 9")):
        with pytest.raises(ConfigError, match=message):
            asked(**config)


def test_runs_are_opened_by_name(folder: Path) -> None:
    run = Run.load(folder)
    published = run.save_pretrained(folder.parent / "published")
    model: Any = get_model(f"twistlm/{published}")
    assert model.api.run.target.fingerprint == run.target.fingerprint
