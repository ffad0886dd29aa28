"""Automata over bytes against Python's `re`, and over tokens against all sequences of a small model."""

import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twistlm.automata.automaton import Automaton
from twistlm.automata.tokens import TokenAutomaton
from twistlm.core.errors import ConfigError

TEXTS = ["".join(letters) for n in range(5) for letters in itertools.product("ab é", repeat=n)]
PATTERNS = [
    "(ab)*", "a*b?", "(?s:.*)", "(a|é)*b", "a{2,3}", "a{0,2}", "[^a]*", r"\w+( \w+)?", "", "(a|ab)(b|)é?", "[a&&b]"
]  # fmt: skip


def python(pattern: str) -> re.Pattern[str]:
    return re.compile("(?!)" if pattern == "[a&&b]" else pattern)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_accepts_what_the_whole_pattern_matches(pattern: str) -> None:
    """Also beyond an accepting state, which `outlines_core.Index` by itself forgets."""
    automaton, expected = Automaton.of_pattern(pattern), python(pattern)
    assert [automaton.accepts(text) for text in TEXTS] == [expected.fullmatch(text) is not None for text in TEXTS]
    assert automaton.is_empty == (pattern == "[a&&b]")


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(PATTERNS, 2)))
def test_algebra(one: str, other: str) -> None:
    a, b = Automaton.of_pattern(one), Automaton.of_pattern(other)
    both, neither = a & b, ~a & ~b
    for text in TEXTS:
        assert both.accepts(text) == (a.accepts(text) and b.accepts(text))
        assert neither.accepts(text) == (not a.accepts(text) and not b.accepts(text))
    assert (a & ~a).is_empty


def test_the_least_automaton() -> None:
    """Equal sets have as many states, whatever the pattern; nothing else does."""
    assert len(Automaton.of_pattern("(a|b)*").accepting) == len(Automaton.of_pattern("(a*b*)*").accepting) == 1
    assert len(Automaton.of_pattern("a{3}").accepting) == len(Automaton.of_pattern("aaa").accepting) == 4
    # All of its states accept.
    assert len(Automaton.of_pattern("a{0,3}").accepting) == 4
    assert len((~~Automaton.of_pattern("a{3}")).accepting) == 4


@pytest.mark.parametrize("pattern", ["a(", "(?=a)b", r"(a)\1"])
def test_what_does_not_compile_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match="does not compile"):
        Automaton.of_pattern(pattern)


def test_a_match_that_could_begin_again_takes_no_more_states() -> None:
    """`outlines_core.Index` would take 2³⁰."""
    assert len(Automaton.of_pattern(r'"[^\x00-\x1F]{30}"').accepting) < 500


def test_too_many_states_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twistlm.automata.automaton.MOST_STATES", 10)
    with pytest.raises(ConfigError, match="more than 10 states"):
        _ = Automaton.of_pattern("(?s:.{7}a.*)") & Automaton.of_pattern("(?s:.*b.{7})")


# Bytes of "é" by themselves, both together, texts of several letters, one without bytes, and EOS.
VOCABULARY = [b"a", b"b", b"\xc3", b"\xa9", "é".encode(), b"ab", b"", b"<eos>"]
EOS = 7


@pytest.mark.parametrize("pattern", [*PATTERNS[:-1], "é+a"])
@pytest.mark.parametrize("ends", [(EOS,), (), (EOS, 6)])
def test_tokens_against_every_sequence(pattern: str, ends: tuple[int, ...]) -> None:
    """All tokenizations of a text count, bytes of one letter included; nothing follows EOS but EOS."""
    vocabulary = VOCABULARY if ends else [*VOCABULARY[:-1], b""]
    automaton = TokenAutomaton.of(Automaton.of_pattern(pattern), vocabulary, ends)
    tokens = torch.tensor(list(itertools.product(range(len(VOCABULARY)), repeat=3)))
    expected = []
    for row in tokens.tolist():
        end = next((at for at, token in enumerate(row) if token in ends), len(row))
        raw = b"".join(vocabulary[token] for token in row[:end])
        proper = set(row[end:]) <= set(ends) and all(vocabulary[token] for token in row[:end])
        try:
            expected.append(proper and python(pattern).fullmatch(raw.decode()) is not None)
        except UnicodeDecodeError:
            expected.append(False)
    assert automaton.satisfied(tokens).tolist() == expected


def test_classes_are_few() -> None:
    """Tokens that do the same everywhere are one class."""
    vocabulary = [str(number).encode() for number in range(1000)]
    automaton = TokenAutomaton.of(Automaton.of_pattern("[0-9]{4}"), vocabulary, ())
    assert automaton.following.shape == (5 + 2, 3)
    assert automaton.token_class.unique().tolist() == [0, 1, 2]
    assert automaton.fewest_tokens() == 2
    assert TokenAutomaton.of(Automaton.of_pattern("a"), vocabulary, ()).is_empty


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(min_size=0, max_size=4), min_size=1, max_size=12), st.sampled_from(PATTERNS[:-1]))
def test_walks_of_any_vocabulary(vocabulary: list[bytes], pattern: str) -> None:
    """A token leads where its bytes lead one by one."""
    automaton = Automaton.of_pattern(pattern)
    found = TokenAutomaton.of(automaton, vocabulary, ())
    for number, token in enumerate(vocabulary):
        state = 0
        for byte in token:
            state = int(automaton.following[state, byte]) if state >= 0 else -1
        accepted = bool(token) and state >= 0 and bool(automaton.accepting[state])
        assert found.satisfied(torch.tensor([[number]])).tolist() == [accepted]
