"""Compiled automata on disk: the same, whoever wrote them, and never more than there is room for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from twistlm.automata import cache
from twistlm.automata.automaton import Automaton
from twistlm.automata.tokens import TokenAutomaton

TOKENS = [b"a", b"b", b"ab", b"<eos>"]
WRITER = """
from twistlm.automata import cache
from twistlm.automata.automaton import Automaton
for number in range(30):
    cache.compiled(Automaton.of_pattern(f"a{{{number % 5}}}b*"), [b"a", b"b", b"ab", b"<eos>"], (3,), (0, 9))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TWISTLM_CACHE", str(tmp_path))
    return tmp_path / "automata"


def compiled(pattern: str, most: float = 9) -> TokenAutomaton:
    return cache.compiled(Automaton.of_pattern(pattern), TOKENS, (3,), (0, most))


def assert_same(one: TokenAutomaton, other: TokenAutomaton) -> None:
    for name in ("following", "accepting", "token_class"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert getattr(one, name).dtype == getattr(other, name).dtype
    assert one.eos == other.eos


def test_what_is_read_is_what_was_compiled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compiled("(ab)*")
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setattr(TokenAutomaton, "of", None)
    again = compiled("(ab)*", most=4)
    assert_same(first, again)
    assert again.lengths == (0, 4)


def test_another_pattern_or_vocabulary_is_another_file(folder: Path) -> None:
    compiled("a*")
    compiled("b*")
    cache.compiled(Automaton.of_pattern("a*"), [b"a", b"ba", b"b", b"<eos>"], (3,), (0, 9))
    cache.compiled(Automaton.of_pattern("a*"), TOKENS, (), (0, 9))
    assert len(list(folder.iterdir())) == 4


def test_a_damaged_file_is_made_anew(folder: Path) -> None:
    first = compiled("a*b")
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes()[:50])
    assert_same(compiled("a*b"), first)
    assert_same(compiled("a*b"), first)


def test_what_was_not_used_for_longest_goes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {}
    for age, pattern in enumerate(("ab", "ba", "aa")):
        before = set(folder.glob("*"))
        compiled(pattern)
        (places[pattern],) = set(folder.iterdir()) - before
        os.utime(places[pattern], (10_000 + age, 10_000 + age))
    compiled("ab")  # used again, so another one is the oldest
    monkeypatch.setattr(cache, "MOST_BYTES", sum(path.stat().st_size for path in places.values()))
    compiled("bb")
    assert {pattern for pattern, path in places.items() if path.exists()} == {"ab", "aa"}
    assert sum(path.stat().st_size for path in folder.iterdir()) <= cache.MOST_BYTES


def test_a_folder_that_cannot_be_written_is_no_matter(folder: Path) -> None:
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("a file in the way")
    assert compiled("a*").satisfied(torch.tensor([[0, 0, 3]])).tolist() == [True]


def test_several_writers(folder: Path) -> None:
    running = [subprocess.Popen([sys.executable, "-c", WRITER], env={**os.environ}) for _ in range(2)]
    assert [each.wait() for each in running] == [0, 0]
    assert len(list(folder.glob("*.safetensors"))) == 5
