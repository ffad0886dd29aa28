"""Python's patterns as automata: the same texts as `re` has, or a refusal."""

import random
import re

import pytest

from twistlm.automata.automaton import Automaton
from twistlm.automata.json_strings import searched
from twistlm.automata.patterns import in_rust
from twistlm.core.errors import ConfigError
from twistlm.potentials import JsonSchema, Length, Regex
from twistlm.potentials.specs import from_spec

# Letters with several lower or upper cases (K is Kelvin's), a mark, joiners, spaces and digits that Rust and Python
# know differently, and what is special in patterns.
LETTERS = "abkKK sſßẞiIıİµμΣσςéÉ\u0301\u200d٣²_0-&|~^[]():{}#.\\\n\t\x1c\x85\xa0中𝒜😀ab  "
CLASSES = [
    "[[:alpha:]]", "[[:digit:]a]", "[^[:space:]]", "[ab&&b]", "[a-k--b]", "[a~~b]", "[a||b]", "[\\w--s]", "[]a]",
    "[^]a]", "[a b]", "[ #]", "[a-]", "[-a]", "[\\]^]", "[\\w-]", "[^\\W\\d]", "[\\s\\S]", "[^\\s\\S]", "[^a]", "[a-z]",
    "[A-Z]", "[^k]", "[µ-ſ]", "[Σ-ω]", "[\\x41-\\x5a]", "[\\u0400-\\U0001ffff]", "[^\\n]", "[\\b]",
]  # fmt: skip
ESCAPES = [
    r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", r"\.", r"\\", r"\n", r"\x41", r"\u017f", r"\U0001f600",
    r"\N{KELVIN SIGN}", r"\101", r"\0", r"\-", r"\ ", r"\#", r"\&",
]  # fmt: skip
# What Rust has and Python has not, and what is not well written.
FOREIGN = [r"\p{L}", r"\pN", r"\x{41}", r"\z", r"\h", "(?<n>a)", "(?U)a*", "a)(?:b", "(a", "[a", "*a", "a{2}{3}", "a**"]
WITHOUT_AUTOMATON = [
    "^", "$", r"\A", r"\Z", r"\b", r"\B", "(?=a)", "(?!b)", "(?<=a)", "(?<!b)", "(?!)", r"(a)\1", "(?P<n>a)(?P=n)",
    "(a)?(?(1)b|s)", "(?>a|ab)", "(?>a*)",
]  # fmt: skip
HAS_NO_AUTOMATON = re.compile(r"[$^]|\\[AZbB1]|\(\?[=!<(>]|\(\?P=|[*+?}]\+")
FLAGS = ["i", "s", "x", "a", "m", "is", "ix", "sx", "-i", "-s", "-x", "i-s", "x-i", "a-x"]
KINDS = (
    "letter", "class", "escape", "dot", "repeat", "lazy", "possessive", "group", "named", "either", "flags", "comment",
    "spaces", "foreign", "without",
)  # fmt: skip
REPEATS = ["*", "+", "?", "{2}", "{,2}", "{1,2}", "{2,}", "{0}", "{", "{a}", "{ 1}"]


class Written:
    """A random pattern, with the kinds of its parts."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.kinds = rng, set[str]()
        begins = rng.choice(["", "", "", "(?i)", "(?x)", "(?s)", "(?ai)", "(?xi)"])
        self.pattern = begins + self.sequence(3)

    def sequence(self, depth: int) -> str:
        return "".join(self.part(depth) for _ in range(self.rng.randint(1, 3)))

    def part(self, depth: int) -> str:
        kind = self.rng.choices(KINDS, weights=(8, 6, 4, 1, 4, 2, 0.3, 2, 1, 2, 2, 1, 1, 0.2, 0.2))[0]
        if depth == 0 and kind in ("repeat", "lazy", "possessive", "group", "named", "either", "flags"):
            kind = "letter"
        self.kinds.add(kind)
        choose, inner = self.rng.choice, lambda: self.sequence(depth - 1)
        once = lambda: choose([self.part(0), f"(?:{inner()})"])  # noqa: E731
        return {
            "letter": lambda: choose([re.escape, str])(choose(LETTERS)),
            "class": lambda: choose(CLASSES),
            "escape": lambda: choose(ESCAPES),
            "dot": lambda: ".",
            "repeat": lambda: once() + choose(REPEATS),
            "lazy": lambda: once() + choose(REPEATS) + "?",
            "possessive": lambda: once() + choose(REPEATS) + "+",
            "group": lambda: f"({inner()})",
            "named": lambda: f"(?P<n{self.rng.randrange(10**6)}>{inner()})",
            "either": lambda: f"(?:{inner()}|{choose(['', inner()])})",
            "flags": lambda: f"(?{choose(FLAGS)}:{inner()})",
            "comment": lambda: choose(["(?# a|b)", "# ab\n"]),
            "spaces": lambda: choose([" ", "\n ", "a b", "a #"]),
            "foreign": lambda: choose(FOREIGN),
            "without": lambda: choose(WITHOUT_AUTOMATON),
        }[kind]()


def texts_for(pattern: str, rng: random.Random) -> list[str]:
    """Short texts, of letters of the pattern and of any."""
    own = [letter for letter in pattern if letter.isalnum()] or ["a"]
    letters = [*LETTERS, *(own * (1 + len(LETTERS) // len(own)))]
    return ["", *LETTERS, *("".join(rng.choices(letters, k=rng.randint(2, 5))) for _ in range(60))]


@pytest.mark.parametrize("count", [pytest.param(10_000, marks=pytest.mark.nightly), 60])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_random_patterns_against_python(count: int) -> None:
    rng, kinds, refused = random.Random(0), set[str](), list[tuple[str, str]]()
    for _ in range(count):
        written, flags = Written(rng), rng.choice([0, 0, 0, re.I, re.S, re.X, re.A, re.M, re.I | re.X, re.I | re.A])
        mode, pattern, negate = rng.choice(["fullmatch", "search"]), written.pattern, rng.random() < 0.1
        try:
            python = re.compile(pattern, flags)
        except re.error:
            with pytest.raises(ConfigError, match="invalid regular expression"):
                Regex(pattern, flags=flags, constrain=True)
            continue
        try:
            automaton = Regex(pattern, mode=mode, flags=flags, negate=negate, constrain=True).automaton()
        except ConfigError as error:
            refused.append((pattern, str(error)))
            continue
        kinds |= written.kinds
        for text in texts_for(pattern, rng):
            matched = (python.search if mode == "search" else python.fullmatch)(text) is not None
            assert automaton.accepts(text) == (matched != negate), (pattern, flags, mode, text)
    # What has an automaton gets one, and everything was there.
    for pattern, error in refused:
        assert HAS_NO_AUTOMATON.search(pattern), pattern
        assert re.search("no automaton knows|has an anchor", error), pattern
    assert kinds >= set(KINDS) - {"possessive", "foreign", "without"}


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("(?=a)b", "look-around"), ("(?!)", "look-around"), (r"(a)\1", "back-reference"), ("^a$", "anchor"),
     ("a|b$", "anchor"), (r"a\Z", "anchor"), ("(a$)", "anchor"), (r"[$]b\\$", "anchor"), (r"\ba\b", "word boundary"),
     (r"a\B", "word boundary"), ("a*+", "possessive"), ("(?:ab){2,3}+", "possessive"), ("(?>a|ab)c", "atomic"),
     ("(a)?(?(1)b|c)", "condition"), ("a(", "invalid regular expression .* position 1"), ("a)(?:b", "position 1"),
     (r"\p{L}", r"bad escape \\p"), ("a{99999999999}", "too large"), ("(" * 5000 + ")" * 5000, "recursion")],
)  # fmt: skip
def test_what_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        in_rust(pattern)


@pytest.mark.parametrize(
    ("pattern", "text", "other"),
    [("(?x)a b # hi", "ab", "a b"), ("(?x)a b # costs $5", "ab", "a"), ("(?x)a[# $\n] b", "a b", "ab"),
     ("(?x)a b # (^$\n", "ab", "a"), ("a(?x: # $)\n b)", "ab", "a"), (r"a\$", "a$", "a"), ("[$]", "$", ""),
     (r"[\]$]", "]", "a"), ("[a[$b]c]", "[c]", "$"), ("(?i)k", "K", "x"), ("(?ia:k)", "K", "\u212a"),
     (r"(?:a\ud800)?b", "b", "ab"), (r"(?:\ud800|a)b", "ab", "b"), (r"a[^\s\S]{0,3}", "a", "")],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_is_read_as_python_does(pattern: str, text: str, other: str) -> None:
    automaton, python = Automaton.of_pattern(in_rust(pattern)), re.compile(pattern)
    for each in (text, other):
        assert automaton.accepts(each) == (python.fullmatch(each) is not None) == (each == text)


HUGE = [
    "((a{100}){100}){100}",
    "(?:a?){4000000000}",
    "(?:){4000000000}",
    r"(\w{99}){99}",
    "(?x)(a {100}b) {999}c{99999}",
]


@pytest.mark.parametrize("pattern", HUGE)
def test_too_many_states_are_refused_before_anything_is_compiled(pattern: str) -> None:
    """It took all memory, from a folder, too."""
    for make in (
        lambda: Regex(pattern, constrain=True),
        lambda: from_spec({"name": "regex", "pattern": pattern, "constrain": True}),
        lambda: JsonSchema('{"type": "null"}', before=pattern),
    ):
        with pytest.raises(ConfigError, match=r"takes about .* states, and the most is 10,000"):
            make()
    Regex(pattern)


def test_counts_elsewhere_are_refused_too() -> None:
    with pytest.raises(ConfigError, match=r"takes about .* states"):
        Length(1, 10**6).automaton()
    for pattern in ("((a{100}){100}){100}", "a{1000}{1000}"):
        with pytest.raises(ConfigError, match=r"takes about .* states"):
            searched(pattern)


@pytest.mark.parametrize("unit", ["words", "sentences"])
def test_exact_numbers_of_words_take_few_states(unit: str) -> None:
    """The number of states doubled with each word: a search could have begun anywhere."""
    assert len(Length(30, 30, unit).automaton().accepting) < 1000  # type: ignore[arg-type]
    assert len(Automaton.of_pattern(in_rust("(?s:.{30})")).accepting) < 1000
