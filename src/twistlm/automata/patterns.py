"""Python's regular expressions, written for Rust's engine.

Python's own parser reads the pattern and Python's own engine says which characters each class has, so that nothing is
read differently: Rust has set operators, POSIX classes and other rules for spaces, escapes and letters. What is not a
set of texts by itself (what is beside it, or the order of attempts, matters) is refused.
"""

import re
from collections.abc import Iterable
from functools import cache, lru_cache

# No module of `re` has types. Run on Python 3.11 so far; a later one is in the workflows.
from re import _compiler, _parser  # type: ignore[attr-defined]
from typing import Any

from twistlm.core.errors import ConfigError
from twistlm.core.storage import shortened

# Time grows with the square of the number of states: 1,000 of one letter take a second, 4,000 a quarter of a minute.
MOST_STATES = 10_000
# Number of states of a class that has letters of several bytes, about.
STATES_OF_LETTER = 8

NOTHING = r"[^\x{0}-\x{10FFFF}]"
# Parts of a pattern for Rust: a class (which may hold another), an escape, the beginning of a group, a count, a letter.
PARTS = re.compile(
    r"\[(?:\\.|\[(?:\\.|[^\]\\])*\]|[^\]\\\[])*\]|\\x\{\w+\}|\\.|\((?:\?\w*:)?|\{\d+(?:,\d*)?\}|.", re.DOTALL
)
# All flags that decide which characters a class has.
OF_CLASSES = re.ASCII | re.DOTALL | re.IGNORECASE | re.UNICODE

REFUSED = {
    _parser.ASSERT: "look-around ((?=…), (?<!…)), which no automaton knows; leave it out",
    _parser.ASSERT_NOT: "look-around ((?=…), (?<!…)), which no automaton knows; leave it out",
    _parser.FAILURE: "look-around ((?!)), which no automaton knows; leave it out",
    _parser.GROUPREF: r"a back-reference (\1), which no automaton knows; leave it out",
    _parser.GROUPREF_EXISTS: "a condition ((?(1)…)), which no automaton knows; write both alternatives with |",
    _parser.ATOMIC_GROUP: "an atomic group ((?>…)), which no automaton knows; write (?:…) if you mean that",
    _parser.POSSESSIVE_REPEAT: "a possessive repeat (*+, ++, ?+, {…}+), which no automaton knows; leave the last + out",
}
ANCHOR = (
    "an anchor; leave out ^ and $, since the whole text must match (and write .* where anything may stand before or "
    "after)"
)
BOUNDARY = r"a word boundary (\b), which no automaton knows; use Words, or write \W for what is beside the word"


def in_rust(pattern: str, flags: int = 0) -> str:
    r"""Translate a pattern of Python's `re`.

    Args:
        pattern: the regular expression.
        flags: `re` flags.

    Returns:
        A pattern for `Automaton.of_pattern`, which may stand inside another. It matches the same texts as
        `re.fullmatch`, those with NUL excepted.

    Raises:
        ConfigError: `re` does not take it, or it has what no automaton knows.
    """
    try:
        parsed = _parser.parse(pattern, flags)
        found = _sequence(parsed, parsed.state.flags)
    except _NoSetError as error:
        raise ConfigError(f"pattern {shortened(pattern)} has {error}") from error
    except (re.error, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(f"invalid regular expression {shortened(pattern)}: {error}") from error
    written = NOTHING if found is None else found
    check_states(written, f"pattern {shortened(pattern)}")
    return written


def check_states(pattern: str, name: str) -> None:
    """Refuse a pattern for Rust that takes too many states; `name` says in the error what it is.

    Raises:
        ConfigError: its letters, times the counts of what is repeated, are too many.
    """
    sums, last = [0], 0
    for found in PARTS.finditer(pattern):
        part = found[0]
        if part.startswith("("):
            sums.append(0)
        elif part.startswith("{"):
            # Once it is there already.
            more = last * (max(map(int, re.findall(r"\d+", part))) - 1)
            sums[-1], last = sums[-1] + more, last + more
        else:
            # A group that matches nothing but the empty text takes time, too.
            last = max(1, sums.pop()) if part == ")" else _states(part)
            sums[-1] += last
    if sums[0] > MOST_STATES:
        raise ConfigError(
            f"{name} takes about {sums[0]:,} states, and the most is {MOST_STATES:,}: make its counts smaller"
        )


def _states(part: str) -> int:
    """Number of states of a class or letter, about."""
    if part.startswith("["):
        return 1 + STATES_OF_LETTER * part.count("^") + part.count(r"\x{") // STATES_OF_LETTER
    return STATES_OF_LETTER if part in (".", r"\w", r"\W", r"\s", r"\S") else len(part[0].encode())


class _NoSetError(Exception):
    """Part of a pattern is not a set of texts."""


def _sequence(parts: Iterable[tuple[Any, Any]], flags: int) -> str | None:
    """Parts one after the other; None if no text matches.

    `outlines_core.Index` takes a pattern that cannot go on after some of its letters for one that matches nothing.
    """
    written = [_part(kind, value, flags) for kind, value in parts]
    return None if None in written else "".join(each or "" for each in written)


def _part(kind: Any, value: Any, flags: int) -> str | None:
    if kind in (_parser.LITERAL, _parser.NOT_LITERAL, _parser.ANY, _parser.IN):
        return _class(kind, tuple(value) if kind is _parser.IN else value, flags & OF_CLASSES)
    if kind is _parser.BRANCH:
        ways = [way for each in value[1] if (way := _sequence(each, flags)) is not None]
        return f"(?:{'|'.join(ways)})" if ways else None
    if kind is _parser.SUBPATTERN:
        _, added, removed, inner = value
        # ASCII and UNICODE exclude each other.
        kept = flags & ~_parser.TYPE_FLAGS if added & _parser.TYPE_FLAGS else flags
        return _part(_parser.BRANCH, (None, [inner]), (kept | added) & ~removed)
    if kind in (_parser.MAX_REPEAT, _parser.MIN_REPEAT):
        least, most, inner = value
        once = _sequence(inner, flags)
        if once is None:
            return None if least else ""
        return f"(?:{once}){{{least},{'' if most is _parser.MAXREPEAT else most}}}"
    if kind is _parser.AT:
        raise _NoSetError(BOUNDARY if value in (_parser.AT_BOUNDARY, _parser.AT_NON_BOUNDARY) else ANCHOR)
    raise _NoSetError(REFUSED[kind])


@lru_cache(maxsize=4096)
def _class(kind: Any, value: Any, flags: int) -> str | None:
    """The characters that one item of a pattern matches, as ranges; None if there are none."""
    state = _parser.State()
    item = _parser.SubPattern(state, [(kind, list(value) if kind is _parser.IN else value)])
    runs = _parser.SubPattern(state, [(_parser.MAX_REPEAT, (1, _parser.MAXREPEAT, item))])
    ranges = []
    for found in _compiler.compile(runs, flags).finditer(_characters()):
        first, last = (ord(_characters()[at]) for at in (found.start(), found.end() - 1))
        ranges.append(rf"\x{{{first:x}}}" + (rf"-\x{{{last:x}}}" if last > first else ""))
    return f"[{''.join(ranges)}]" if ranges else None


@cache
def _characters() -> str:
    """All that a text may hold: no surrogates, which UTF-8 has not, and no NUL."""
    return "".join(map(chr, [*range(1, 0xD800), *range(0xE000, 0x110000)]))
