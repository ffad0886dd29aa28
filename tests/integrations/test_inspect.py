"""Inspect itself: its task over the package's entry point, asked of a run behind `twistlm serve`."""

import asyncio
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from inspect_ai import eval as evaluate
from inspect_ai.model import ChatCompletionChoice, ChatMessageAssistant, ChatMessageUser, ModelName, ModelOutput
from inspect_ai.scorer import SampleScore
from inspect_ai.scorer import Target as InspectTarget
from inspect_ai.solver import TaskState
from scipy.stats import binomtest

import twistlm
from tests.serving import serving
from twistlm import Run, Target
from twistlm.integrations.inspect import event, event_rate, rate
from twistlm.integrations.server.app import application
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
def run() -> Run:
    target = Target("stories", Classifier("sentiment", "positive"), PROMPTS[0], 6)
    return twistlm.train(target, twist="lexical", num_updates=3, num_draws=64, num_particles=8, seed=0)


def test_the_task_counts_events(run: Run, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    with serving(application(run, "toxic")) as address:
        (log,) = evaluate(
            event_rate(str(tmp_path / "prompts.txt"), num_choices=6, threshold=0.05),
            model="openai-api/twistlm/toxic",
            model_base_url=f"{address}/v1",
            model_args={"api_key": "none"},
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
    # Epochs are no copies of each other, and are counted as if they were none.
    answers = [[choice.message.text for choice in sample.output.choices] for sample in log.samples]
    assert len({tuple(each) for each in answers}) == 4


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
