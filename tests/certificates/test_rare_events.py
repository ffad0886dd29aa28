"""Rare events against enumeration: unbiased, with intervals that hold it, from few draws."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor

from tests.architectures import tiny_lm
from twistlm import Target
from twistlm.certificates.effort import Search
from twistlm.certificates.probability import Probability, plain_tokens, spelled
from twistlm.certificates.rare_events import SWITCHING, Climb, probability
from twistlm.core import registry
from twistlm.core.errors import ConfigError
from twistlm.core.estimates import Estimate
from twistlm.core.rng import Rng
from twistlm.core.storage import as_json
from twistlm.models.tabular import TabularLM, num_nodes
from twistlm.potentials import Function, Regex
from twistlm.sampling.proposals import twist_induced
from twistlm.testing import Enumeration, assert_mean
from twistlm.twists.base import Twist
from twistlm.twists.tabular import TabularHead

STEPS = 4
SEARCH = Search(num_draws=512, max_rounds=8, num_samples=2048, min_ess=20, twist="tilt", twist_options=())
# How often an estimate is made to see how often its interval holds the truth: every night, and otherwise.
REPEATS = [pytest.param(400, marks=pytest.mark.nightly), 60]


def fours(texts: list[str]) -> list[float]:
    """log of a score that counts how often 4 was said after the prompt: 4 times reaches 1."""
    return [text[1:].count("4") - 4.0 for text in texts]


class Tilt(TabularHead):
    """log ψ(prefix, v) by the step and v alone, so that tokens which were never seen together are expected together."""

    def __init__(self, lm: TabularLM) -> None:
        super().__init__(torch.zeros((STEPS + 2, lm.vocab_size), dtype=torch.float64))
        starts = torch.tensor([num_nodes(lm.vocab_size, depth) for depth in range(STEPS + 2)])
        nodes = torch.arange(len(lm.table))
        self.register_buffer("depth", torch.searchsorted(starts, nodes, right=True) - 1)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(self.depth[features])

    def gather(self, features: Tensor, tokens: Tensor) -> Tensor:
        return super().gather(self.depth[features], tokens)


def seldom_four(monkeypatch: pytest.MonkeyPatch) -> TabularLM:
    """A tabular model that rarely says 4, and the twist "tilt" for it."""
    monkeypatch.setitem(registry._ENTRIES, "twist", {**registry.available("twist")})

    @registry.register("twist", "tilt")
    def tilt(lm: TabularLM) -> Twist:
        """log ψ of every step and token."""
        head = Tilt(lm)
        return Twist(head, head)

    lm = TabularLM.random(5, STEPS + 1, seed=3, scale=0.7)
    lm.table[:, 4] -= 0.6
    return lm


def estimated(climb: Climb, threshold: float) -> Probability:
    """From fresh draws, without learning any more."""
    return climb._concluded(climb._fresh(threshold), threshold, 0)


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> Target:
    """P[four times] is 6e-5."""
    lm = seldom_four(monkeypatch)
    return Target(lm, Function(fours, log_upper_bound=0.0), "1", STEPS, eos="ignore")


def truth(target: Target, threshold: float) -> float:
    every = Enumeration.of(target.twisted(), target.bound_potential, target.prompt_tokens, STEPS)
    return float(every.log_p[every.log_phi >= math.log(threshold)].exp().sum())


@pytest.mark.parametrize("repeats", REPEATS)
@pytest.mark.parametrize("log_threshold", [-2.0, 0.0])
def test_estimates_are_unbiased_and_their_intervals_hold_the_truth(
    target: Target, log_threshold: float, repeats: int
) -> None:
    """What was learned once, and many estimates: they allow for what no draw has shown, and hold it the more often."""
    threshold = math.exp(log_threshold)
    climb, exact = Climb(target, SEARCH, Rng(0)), truth(target, threshold)
    climb.reach(threshold)
    found = []
    for k in range(repeats):
        climb.rng = Rng(k + 1)
        found.append(estimated(climb, threshold))
    assert_mean(torch.tensor([each.value.value for each in found], dtype=torch.float64), exact)
    for name in ("value", "seen"):
        held = sum(getattr(each, name).low <= exact <= getattr(each, name).high for each in found)
        assert is_95_percent(held, repeats), name


def is_95_percent(held: int, repeats: int) -> bool:
    """Whether 95 % of the repeats or more is not refuted."""
    return bool(stats.binomtest(held, repeats).proportion_ci(0.99, "exact").high >= 0.95)


@pytest.mark.parametrize("repeats", REPEATS)
@pytest.mark.parametrize(("log_threshold", "num_samples"), [(-2.0, 64), (-1.0, 64), (0.0, 64), (0.0, 512)])
def test_few_draws_of_a_rare_event_are_not_sure(
    target: Target, log_threshold: float, num_samples: int, repeats: int
) -> None:
    """From 64 fresh draws after one poor round, the event often unseen: intervals of the self-normalised estimate, and
    those that know only what was seen, held the truth in 88 %, 32 % and 2 % of cases as the event became rarer."""
    threshold = math.exp(log_threshold)
    poor = replace(SEARCH, num_draws=64, max_rounds=1, num_samples=num_samples)
    climb, exact = Climb(target, poor, Rng(0)), truth(target, threshold)
    climb.reach(threshold)
    values, seen = [], 0
    for k in range(repeats):
        climb.rng = Rng(k + 1)
        found = estimated(climb, threshold)
        values.append(found.value)
        seen += found.seen is not None and found.seen.low <= exact <= found.seen.high
    assert is_95_percent(sum(each.low <= exact <= each.high for each in values), repeats)
    # Sixty do not tell 88 % from 95 %.
    if log_threshold == 0.0 or (log_threshold == -1.0 and repeats > 60):
        assert not is_95_percent(seen, repeats)
    assert all(0.0 <= each.low < each.high <= 1.0 for each in values)


def test_a_rare_event_takes_a_fraction_of_the_tokens(target: Target) -> None:
    """Every seed's whole search, and fewer draws than plain Monte Carlo needs to see the event once."""
    exact = truth(target, 1.0)
    assert exact < 1e-4
    found = [probability(target, [1.0], search=SEARCH, seed=seed)[0] for seed in range(5)]
    # Of five intervals of 95 %, fewer than three hold the truth once in a thousand times.
    assert sum(each.value.low <= exact <= each.value.high for each in found) >= 3
    for each in found:
        assert each.num_tokens < STEPS / exact
        assert each.seen is not None
        assert plain_tokens(each.seen, STEPS) > 50 * each.num_tokens
        # The lower end owes nothing to what was never seen.
        assert each.value.low > 0.4 * exact
        # As sure that nothing is missed as counting is, from the base model's half of the fresh draws.
        assert each.value.high < 1.1 * 3.7 / (SEARCH.num_samples / 2)


def twice_in_a_row(texts: list[str]) -> list[float]:
    """log of a score that is 1 where 4 is said twice in a row, early or late, and less where it is said once."""
    return [0.0 if "44" in text[1:] else -2.0 if "4" in text[1:] else -4.0 for text in texts]


@pytest.mark.parametrize("repeats", REPEATS)
def test_an_event_that_comes_early_or_late_is_found_both_ways(target: Target, repeats: int) -> None:
    """A tilt by step can only say where 4 is likelier; switched on and off, it makes no way to the event rare."""
    target = Target(target.lm, Function(twice_in_a_row, log_upper_bound=0.0), "1", STEPS, eos="ignore")
    climb, exact = Climb(target, SEARCH, Rng(0)), truth(target, 1.0)
    climb.reach(1.0)
    model = climb.sampler.model
    every = Enumeration.of(model, target.bound_potential, target.prompt_tokens, STEPS)
    found = model.densities(every.samples(model), twist_induced)
    log_q = {"steered": found.log_q.sum(-1), "switched": SWITCHING.log_q(found.log_p, found.log_q)[:, -1]}
    event, said = every.log_phi == 0.0, every.tokens == 4
    only = {"early": said[:, :2].all(-1) & ~said[:, 2:].any(-1), "late": said[:, -2:].all(-1) & ~said[:, :2].any(-1)}
    for way in only.values():
        assert bool((event & way).any())
    worst = {name: float((every.log_p - q)[event].exp().max()) for name, q in log_q.items()}
    assert worst["switched"] < 0.6 < 1.0 < worst["steered"], worst
    estimates = []
    for k in range(repeats):
        climb.rng = Rng(k + 1)
        estimates.append(estimated(climb, 1.0).value)
    assert_mean(torch.tensor([each.value for each in estimates], dtype=torch.float64), exact)
    held = sum(each.low <= exact <= each.high for each in estimates)
    assert is_95_percent(held, repeats), held


def test_a_common_event_is_no_harder_than_by_counting(target: Target) -> None:
    (found,) = probability(target, [math.exp(-4.0)], search=SEARCH)
    assert found.value.value == pytest.approx(1.0, abs=0.05)
    assert found.self_normalised == pytest.approx(1.0)
    assert found.value.high <= 1.0
    assert found.log10[0] == pytest.approx(0.0, abs=0.03)


def test_thresholds_go_from_easy_to_hard_and_share_what_was_learned(target: Target) -> None:
    easy, hard = probability(target, [1.0, math.exp(-2.0)], search=SEARCH)
    assert (easy.threshold, hard.threshold) == (math.exp(-2.0), 1.0)
    assert easy.value.value > hard.value.value
    assert hard.num_tokens > easy.num_tokens
    (alone,) = probability(target, [1.0], search=SEARCH)
    assert hard.rounds <= alone.rounds
    assert alone == probability(target, [1.0], search=SEARCH)[0]


def test_an_upper_bound_where_the_base_model_shows_the_event(target: Target) -> None:
    """Of forty intervals, whose expectation lies above, more than one in ten below the truth is no chance."""
    threshold = math.exp(-3.0)
    climb, log_truth, held = Climb(target, SEARCH, Rng(0)), math.log(truth(target, threshold)), 0
    climb.reach(threshold)
    for k in range(40):
        climb.rng = Rng(k + 1)
        found = estimated(climb, threshold).log_upper
        assert found is not None
        held += found.high > log_truth
    assert held >= 36


def test_an_event_that_is_never_seen_has_an_upper_limit_and_no_zero() -> None:
    never = Regex("no such words")
    (found,) = probability(
        Target(tiny_lm(), never, "5", 3, eos="ignore"), [1.0],
        search=Search(num_draws=64, num_samples=64, max_rounds=2, twist="low_rank"),
    )  # fmt: skip
    assert found.hits == 0
    assert (found.value.value, found.value.low) == (0.0, 0.0)
    # 64 draws of which none was the event, and no weight above 2.
    assert found.value.high == pytest.approx(2 * (1 - 0.025 ** (1 / 64)))
    assert found.seen is None
    assert found.log10[0] == -math.inf
    assert isinstance(as_json(found)["probability"]["high"], float)


def test_what_is_refused() -> None:
    target = Target(tiny_lm(), Regex("7"), "5", 3)
    for thresholds in ([], [0.0], [0.5, -1.0]):
        with pytest.raises(ConfigError, match="thresholds must be above 0, at least one"):
            probability(target, thresholds)
    # In a folder events are known by their threshold, and each would have been both's.
    with pytest.raises(ConfigError, match=r"a threshold is named twice among 0.5, 0.2, 0.5; name each once"):
        probability(target, [0.5, 0.2, 0.5])
    with pytest.raises(ConfigError, match="num_draws must be at least 64, not 10"):
        Search(num_draws=10)


def test_plain_monte_carlo_would_need_what_the_textbook_says() -> None:
    half = 1.96e-4
    p = Estimate(0.01, 0.01 - half, 0.01 + half, 2)
    found = Probability(0.5, p, p, 0.01, None, 2, 2, 2.0, 10, 1)
    assert found.plain_tokens(20) == pytest.approx(20 * 0.01 * 0.99 / 1e-8, rel=1e-3)


@pytest.mark.parametrize("saved", [False, True])
def test_thresholds_that_agree_to_six_digits_are_two(saved: bool, tmp_path: Path, target: Target) -> None:
    """The second read the first one's saved draws: whether they reached the first threshold."""
    low, between, high = 0.12345641, 0.12345645, 0.12345649
    scores = Function(lambda texts: [math.log(between) * (text[1] == "4") for text in texts], log_upper_bound=0.0)
    goal = Target(target.lm, scores, "1", STEPS, eos="ignore", identity="between")
    found = probability(goal, [low, high], search=SEARCH, state=tmp_path if saved else None)
    assert truth(goal, high) < 0.95
    for each in found:
        assert each.value.value == pytest.approx(truth(goal, each.threshold), abs=0.03)
    assert [spelled(each) for each in (0.5, 1.0, 1e-7, low, high)] == ["0.5", "1", "1e-07", "0.12345641", "0.12345649"]
