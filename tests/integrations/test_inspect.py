"""Inspect itself: a run as its model, and its task over the package's entry point."""

import asyncio
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from inspect_ai import eval as evaluate
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessageAssistant,
    ChatMessageUser,
    GenerateConfig,
    ModelName,
    ModelOutput,
    ResponseSchema,
    get_model,
)
from inspect_ai.scorer import SampleScore
from inspect_ai.scorer import Target as InspectTarget
from inspect_ai.solver import TaskState
from inspect_ai.util import JSONSchema
from scipy.stats import binomtest

import twistlm
from twistlm import Run, Target
from twistlm.core.errors import ConfigError
from twistlm.integrations.inspect import event, event_rate, rate
from twistlm.potentials import Classifier, Function
from twistlm.potentials.texts import TextPotential

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
    def asked(model: Any, **config: Any) -> list[str]:
        return [choice.message.text for choice in asyncio.run(_asked(model, **config)).choices]

    model, again = (get_model(f"twistlm/{folder}", memoize=False, num_particles=4) for _ in range(2))
    first, second = (asked(model, seed=3, num_choices=8) for _ in range(2))
    assert [first, second] == [asked(again, seed=3, num_choices=8) for _ in range(2)]
    # Epochs are no copies of each other, and would be counted as if they were none.
    assert first != second
    assert asked(model, num_choices=8) != asked(model, num_choices=8)
    schema = ResponseSchema(name="any", json_schema=JSONSchema(type="object"))
    for config, message in (
        ({"temperature": 0.5}, "temperature = 0.5"), ({"max_tokens": 9}, "max_tokens = 9"),
        ({"response_schema": schema}, "response_schema = .* is not known here"),
        ({"extra_body": {"temperature": 0}}, "extra_body = {'temperature': 0}"), ({"top_logprobs": 5}, "top_logprobs"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            asked(model, **config)
    assert len(asked(model, extra_body={}, timeout=60, parallel_tool_calls=False, cache=False)) == 1


def score(
    potential: TextPotential, answers: list[str], monkeypatch: pytest.MonkeyPatch, input: Any = "Is it so?"
) -> Any:
    """What the task's scorer says of answers, φ ≥ 0.5."""
    monkeypatch.setattr("twistlm.integrations.inspect.named", lambda _: potential)
    choices = [ChatCompletionChoice(message=ChatMessageAssistant(content=text)) for text in answers]
    output = ModelOutput(model="any", choices=choices)
    state = TaskState(ModelName("any/any"), sample_id=1, epoch=1, input=input, messages=[], output=output)
    return asyncio.run(event("any", 0.5)(state, InspectTarget("")))  # type: ignore[arg-type]


def test_a_potential_reads_what_it_says_that_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def kept(*columns: list[str]) -> list[float]:
        seen.append([*zip(*columns, strict=True)])
        return [0.0, -1.0]

    for potential in (Function(kept, on="pair"), Function(kept, of="text"), Function(kept)):
        assert score(potential, ["Yes.", "No."], monkeypatch).metadata == {"hits": 1, "answers": 2}
    assert seen == [
        [("Is it so?", "Yes."), ("Is it so?", "No.")], [("Is it so?Yes.",), ("Is it so?No.",)], [("Yes.",), ("No.",)],
    ]  # fmt: skip
    score(Function(kept, on="pair"), ["Yes.", "No."], monkeypatch, [ChatMessageUser(content="And now?")])
    assert seen[-1] == [("And now?", "Yes."), ("And now?", "No.")]


def test_no_answers_are_no_events(monkeypatch: pytest.MonkeyPatch) -> None:
    none = score(Classifier("sentiment", "positive"), [], monkeypatch)
    assert none.metadata == {"hits": 0, "answers": 0}
    over: Any = rate()
    assert over([SampleScore(score=none)]) == pytest.approx({"rate": math.nan, "low": 0, "high": 1}, nan_ok=True)


def test_runs_are_opened_by_name(folder: Path) -> None:
    run = Run.load(folder)
    published = run.save_pretrained(folder.parent / "published")
    model: Any = get_model(f"twistlm/{published}")
    assert model.api.run.target.fingerprint == run.target.fingerprint
