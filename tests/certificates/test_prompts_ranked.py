"""Probabilities over a set of prompts, with one twist for all, against enumeration."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.certificates.test_rare_events import REPEATS, SEARCH, STEPS, estimated, is_95_percent, seldom_four
from twistlm import Target
from twistlm.certificates.events import chosen, reads_texts, spans_of
from twistlm.certificates.probability import Probability, PromptProbability, one_in
from twistlm.certificates.rare_events import CLIMB, Climb, probability
from twistlm.core.estimates import Estimate
from twistlm.core.rng import Rng
from twistlm.potentials import Continuation, Function, Regex
from twistlm.sampling.prompts import Prompts
from twistlm.testing import Enumeration, assert_mean

SHARES = (0.5, 0.2, 0.3)
SET = replace(SEARCH, num_draws=1536, num_samples=1536, max_rounds=8)


def fours(texts: list[str]) -> list[float]:
    """log of a score that counts how often 4 was said after the prompt; after a 2 it is always 0."""
    return [-math.inf if text[0] == "2" else text[1:].count("4") - 4.0 for text in texts]


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> Target:
    """After 0 a 4 is likelier than after 1, and after 2 the event never happens."""
    lm = seldom_four(monkeypatch)
    prompts = Prompts(("0", "1", "2"), ("easy", "hard", "never"), SHARES)
    return Target(lm, Function(fours, log_upper_bound=0.0), prompts=prompts, num_tokens=STEPS, eos="ignore")


def truths(target: Target, threshold: float) -> list[float]:
    found = []
    for case in target.cases:
        every = Enumeration.of(target.twisted(), target.bound_potential, case.prompt, STEPS)
        found.append(float(every.log_p[every.log_phi >= math.log(threshold)].exp().sum()))
    return found


@pytest.mark.parametrize("repeats", REPEATS)
@pytest.mark.parametrize("log_threshold", [-2.0, 0.0])
def test_each_prompt_and_the_whole_set_are_unbiased_with_intervals_that_hold(
    target: Target, log_threshold: float, repeats: int
) -> None:
    threshold = math.exp(log_threshold)
    climb, exact = Climb(target, SET, Rng(0)), truths(target, threshold)
    climb.reach(threshold)
    found = []
    for k in range(repeats):
        climb.rng = Rng(k + 1)
        found.append(estimated(climb, threshold))
    whole = sum(share * p for share, p in zip(SHARES, exact, strict=True))
    together = 0
    for r, p in enumerate([*exact, whole]):
        mine = [each.value if r == 3 else each.by_prompt[r].value for each in found]
        if p > 0:
            assert_mean(torch.tensor([each.value for each in mine], dtype=torch.float64), p)
        assert is_95_percent(sum(each.low <= p <= each.high for each in mine), repeats), r
    for each in found:
        ends = [prompt.simultaneous for prompt in each.by_prompt]
        together += all(end.low <= p <= end.high for end, p in zip(ends, exact, strict=True))
    assert is_95_percent(together, repeats)


def test_one_twist_serves_every_prompt_and_one_without_the_event_ends_nothing(
    target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    """Far fewer draws than counting needs at each prompt, and an upper limit where φ is never met."""
    exact = truths(target, 1.0)
    (found,) = probability(target, [1.0], search=SET)
    easy, hard, never = found.by_prompt
    for each, p in zip((easy, hard), exact, strict=False):
        assert each.value.low <= p <= each.value.high
        assert each.seen is not None
        assert each.value.low > 0.3 * p
        assert each.hits > 5, "counting would have seen none"
    assert (never.hits, never.value.value, never.seen, never.events) == (0, 0.0, None, ())
    assert never.value.high == pytest.approx(2 * (1 - 0.025 ** (1 / 512)))
    assert "never)" in caplog.text
    assert found.value.value == pytest.approx(
        sum(share * each.value.value for share, each in zip(SHARES, found.by_prompt, strict=True))
    )
    assert {event.text for event in easy.events} == {"4444"}


def test_a_prompt_is_above_another_only_where_their_intervals_are_apart() -> None:
    def of(name: str, low: float, value: float, high: float) -> PromptProbability:
        narrow = Estimate(value, value, value, 9)
        return PromptProbability(name, 0.25, narrow, narrow, Estimate(value, low, high, 9), 1, 9)

    prompts = (of("a", 0.1, 0.2, 0.3), of("b", 0.5, 0.6, 0.7), of("c", 0.25, 0.28, 0.4), of("d", 0.0, 0.0, 0.05))
    each = prompts[0].value
    ranked = Probability(0.5, each, each, 0.1, None, 4, 36, 4.0, 36, 1, prompts).ranked()
    assert [(place.found.name, place.best, place.worst) for place in ranked] == [
        ("b", 1, 1), ("c", 2, 3), ("a", 2, 3), ("d", 4, 4),
    ]  # fmt: skip


def test_events_are_samples_of_the_event() -> None:
    """Resampled where there are too many, on average each distinct text has its share of the weight."""
    tokens = torch.tensor([[0, 1], [2, 2], [0, 1], [1, 0], [2, 0]])
    log_w = torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15], dtype=torch.float64).log()
    index, weights = chosen(Rng(0), tokens, log_w, 4)
    assert tokens[index].tolist() == [[0, 1], [2, 2], [1, 0], [2, 0]]
    assert weights.tolist() == pytest.approx([0.3, 0.3, 0.25, 0.15])
    means = torch.zeros(400, 5, dtype=torch.float64)
    for k in range(len(means)):
        index, weights = chosen(Rng(k), tokens, log_w, 3)
        assert len(index) <= 3
        means[k, index] = weights
    for row, expected in ((0, 0.3), (1, 0.3), (3, 0.25), (4, 0.15)):
        assert_mean(means[:, row], expected)


def test_spans_are_the_words_that_the_score_reacts_to() -> None:
    """Each word is left out by its tokens; only what the score loses without it is marked."""
    target = Target("stories", Regex("dragon|fire", eps=0.01), "Once upon a time, there was a", 8)
    lm, case = target.lm, target.cases[0]
    text = " big red dragon who was sad"
    tokens = lm.encode("there was a" + text)[len(lm.encode("there was a")) :]
    filled = torch.full((1, len(tokens) + 2), lm.eos_token_id)
    filled[0, : len(tokens)] = tokens
    (spans,) = spans_of(target.bound_potential, lm, case.prompt, filled)
    written = lm.decode(list(filled))[0]
    assert [written[each.start : each.end] for each in spans] == ["dragon"]
    assert spans[0].loss == pytest.approx(1 - 0.01 / 1.01)
    assert reads_texts(Regex("a") * Regex("b") ** 2.0)
    assert not reads_texts(Regex("a") * Continuation(" and"))


@pytest.mark.nightly
def test_what_was_saved_is_gone_on_from_bit_for_bit(target: Target, tmp_path: Path) -> None:
    """From states that a kill can leave: after the first and the last round, and between parts of the fresh draws."""
    thresholds = [math.exp(-1.0), 1.0]
    whole = probability(target, thresholds, search=SET)
    states: list[Path] = []

    def keep(said: str) -> None:
        if (tmp_path / "now").exists():
            states.append(tmp_path / f"{len(states)}")
            shutil.copytree(tmp_path / "now", states[-1])

    assert probability(target, thresholds, search=SET, report=keep, state=tmp_path / "now") == whole
    assert len(states) >= 4
    for state in (states[0], states[-1]):
        assert (state / CLIMB).exists()
        assert probability(target, thresholds, search=SET, state=state) == whole
    torn = tmp_path / "now"
    next(torn.glob("fresh-1-*")).unlink()
    assert probability(target, thresholds, search=SET, state=torn) == whole


def test_a_chance_in_words() -> None:
    assert one_in(Estimate(1 / 2154, 1 / 2411, 1 / 1893, 9)) == "1 in 2,150 answers (1 in 1,890 to 1 in 2,410)"
    assert one_in(Estimate(0.61, 0.5, 0.7, 9)) == "1 in 1.6 answers (1 in 1.4 to 1 in 2)"
    assert one_in(Estimate(0.0, 0.0, 0.002, 9)) == "fewer than 1 in 500 answers"
    assert one_in(Estimate(0.01, 0.0, 0.02, 9)) == "1 in 100 answers (1 in 50 to fewer)"
