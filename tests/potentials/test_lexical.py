import math
import re

import pytest
import torch

from twistlm.core.errors import ConfigError
from twistlm.potentials import Contains, Regex, evaluate

HIT, MISS = 0.0, -math.inf


def score(potential, text: str) -> float:
    return potential.log_phi_texts([text]).item()


def test_search_and_fullmatch() -> None:
    assert score(Regex("o+"), "good") == HIT
    assert score(Regex("o+", mode="fullmatch"), "good") == MISS
    assert score(Regex("go+d", mode="fullmatch"), "good") == HIT


def test_negation_eps_and_bound() -> None:
    potential = Regex("dog", negate=True, eps=0.5)
    assert score(potential, "dog") == math.log(0.5)
    assert score(potential, "cat") == math.log(1.5) == potential.log_upper_bound
    assert Regex("dog").log_upper_bound == 0.0


def test_an_invalid_pattern_names_its_position() -> None:
    with pytest.raises(ConfigError, match=r"'a\(b'.*position 1"):
        Regex("a(b")


@pytest.mark.parametrize(("arguments", "message"), [({"mode": "find"}, "mode"), ({"eps": -0.1}, "eps")])
def test_settings_are_checked(arguments, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Regex("a", **arguments)


def test_flags_are_kept_as_an_integer() -> None:
    assert score(Regex("DOG", flags=re.IGNORECASE), "dog") == HIT
    assert type(Regex("a", flags=re.IGNORECASE).flags) is int


@pytest.mark.parametrize(
    ("text", "value"), [("The Cat.", HIT), ("concatenate", MISS), ("cats", MISS), ("cat", HIT), ("", MISS)]
)
def test_contains_takes_whole_words_in_any_case(text, value) -> None:
    assert score(Contains("cat"), text) == value


def test_contains_takes_the_word_literally() -> None:
    assert score(Contains("c++"), "I like c++ a lot") == HIT
    assert score(Contains("c++"), "ccc") == MISS


def test_it_evaluates_on_tokens(lm, batch) -> None:
    assert torch.equal(evaluate(Contains("cat").bind(lm), *batch), torch.tensor([MISS, HIT, MISS]).double())
