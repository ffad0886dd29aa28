"""The probability that a text satisfies a constraint, against enumeration."""

import math
from dataclasses import replace

import pytest

from twistlm import Target
from twistlm.certificates.effort import Search
from twistlm.certificates.probability import Probability
from twistlm.certificates.rare_events import probability
from twistlm.certificates.satisfied import only_constraints
from twistlm.core.errors import ConfigError
from twistlm.core.rng import Rng
from twistlm.core.storage import as_json, as_type
from twistlm.models.tabular import TabularLM
from twistlm.potentials import Regex, Words
from twistlm.sampling.prompts import Prompts
from twistlm.sampling.twisted import TwistedLM
from twistlm.testing import Enumeration

SEARCH = Search(num_draws=256, num_samples=256, num_events=4)
PATTERNS = ["[01]{2}2[0-2]", "0?1?2?", "12.*", "(01)*2?"]


def target(pattern: str, prompts: Prompts | str = "1", eos: str = "absorb") -> Target:
    lm = TabularLM.random(4, 6, 0, scale=1.5, eos_token_id=3)
    return Target(lm, Regex(pattern, mode="fullmatch", constrain=True), prompts=prompts, num_tokens=4, eos=eos)


def truth(of: Target) -> list[float]:
    plain = TwistedLM(of.lm, None, of.eos)
    each = [Enumeration.of(plain, of.bound_potential, case.prompt, of.num_tokens) for case in of.cases]
    return [float(one.log_Z.exp()) for one in each]


@pytest.mark.parametrize(("num_seeds", "most"), [pytest.param(20, 3, marks=pytest.mark.nightly), (5, 1)])
@pytest.mark.parametrize("eos", ["absorb", "ignore"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_intervals_hold_the_truth(pattern: str, eos: str, num_seeds: int, most: int) -> None:
    of = target(pattern, eos=eos)
    exact, missed = truth(of)[0], 0
    for seed in range(num_seeds):
        (found,) = probability(of, [0.5], search=SEARCH, seed=seed)
        assert found.by_prompt[0].value.value == pytest.approx(found.value.value)
        assert found.value.low < found.value.high
        missed += not found.value.low <= exact <= found.value.high
        assert found.value.value == pytest.approx(exact, rel=0.5)
    # One in twenty at most: more of twenty would be a chance of 2 %, and of five as well.
    assert missed <= most


def test_a_set_of_prompts() -> None:
    of = target("[01]{2}2[0-2]", Prompts(("1", "2", "01"), names=("a", "b", "c"), weights=(1.0, 2.0, 1.0)))
    exact = truth(of)
    (found,) = probability(of, [1.0], search=SEARCH, seed=1)
    for each, expected in zip(found.by_prompt, exact, strict=True):
        assert each.value.low <= expected <= each.value.high
    assert [each.share for each in found.by_prompt] == [0.25, 0.5, 0.25]
    whole = (exact[0] + 2 * exact[1] + exact[2]) / 4
    assert found.value.low <= whole <= found.value.high
    assert found.value.value == pytest.approx(sum(e.share * e.value.value for e in found.by_prompt))
    again = as_type(Probability, as_json(found), "it")
    events = tuple(each.events for each in found.by_prompt)
    whole = tuple(replace(one, events=some) for one, some in zip(again.by_prompt, events, strict=True))
    assert replace(again, by_prompt=whole) == found


def test_events_satisfy_it_and_the_seed_reproduces() -> None:
    of = target("[01]{2}2[0-2]")
    one, other = (probability(of, [0.1, 1.0], search=SEARCH, seed=3) for _ in range(2))
    assert one == other
    assert one[0].value == one[1].value
    events = one[0].by_prompt[0].events
    assert 0 < len(events) <= 4
    assert sum(event.weight for event in events) == pytest.approx(1.0)
    assert all(len(event.text) == 4 and event.text[2] == "2" and math.isfinite(event.log_p) for event in events)


def test_the_certain_bound_limits_it() -> None:
    """What nobody can exceed is no part of the interval, however few the draws."""
    of = target("12.*")
    (found,) = probability(of, [1.0], search=Search(num_draws=64, num_samples=64), seed=0)
    assert found.value.high < 0.1
    assert truth(of)[0] <= found.value.high


def test_other_potentials_are_learned_for() -> None:
    """A constraint beside others is left to the climb, whose draws keep to it where they are steered."""
    phi = Words(none_of=("dog",)) * Regex("girl|cat", eps=0.01)
    assert not only_constraints(phi)
    of = Target("stories", phi, "Once upon a time, there was a", 5)
    (found,) = probability(of, [0.9], search=Search(num_draws=512, max_rounds=1), seed=0)
    drawn = of.sampler().base.draw(Rng(1), of.cases, 2000)
    share = float((drawn.log_phi > math.log(0.9)).double().mean())
    assert found.rounds == 1
    assert found.value.value == pytest.approx(share, abs=6 * math.sqrt(share / 1000))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="never reached"):
        probability(target("0?1?2?"), [1.5], search=SEARCH)
    with pytest.raises(ConfigError, match="at least 6 tokens and num_tokens is 4"):
        probability(target("[01]{6}"), [1.0], search=SEARCH)
