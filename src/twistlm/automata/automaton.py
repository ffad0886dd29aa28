"""Deterministic finite automata over the bytes of a text: what a hard constraint on characters is made of.

A pattern is compiled by `outlines-core` (whose engine is that of Rust's `regex-automata`). From there on everything is
set algebra: the intersection of two automata is their product (Rabin and Scott, 1959), the complement swaps accepting
and other states, and the least automaton comes from Moore's partition refinement (1956).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twistlm.core.errors import ConfigError
from twistlm.core.storage import shortened

# Begins and ends every compiled pattern; no text with this byte is accepted. It ends them because `outlines_core.Index`
# (0.2.14) forgets transitions from an accepting state to one that does not accept ("(ab)*" is "ab" alone). It begins
# them because `Index` also builds the automaton of a search that may begin anywhere, and never uses it: without this, a
# quotation mark inside of "[^a]{30}" would begin another match, and 2³⁰ states tell them apart.
MARK, MARK_PATTERN = 0, r"\x00"
BYTES = 256
LINK = 0xFE
DEAD = -1
MOST_STATES = 100_000


@dataclass(frozen=True, eq=False)
class Automaton:
    """A set of byte strings. State 0 is where each begins.

    Attributes:
        following: the state after each byte [S, 256], `DEAD` where nothing that follows is accepted.
        accepting: whether a string may end in each state [S].
    """

    following: NDArray[np.int32]
    accepting: NDArray[np.bool_]

    @staticmethod
    def of_pattern(pattern: str) -> Automaton:
        """All texts that a regular expression matches from beginning to end.

        Its syntax is Rust's, without anchors; `twistlm.automata.patterns` translates Python's. A part that is repeated
        should not match NUL.

        Raises:
            ConfigError: it does not compile, or `outlines-core` is not installed.
        """
        return _compiled(pattern)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is accepted."""
        return not bool(self.accepting.any())

    def accepts(self, text: str) -> bool:
        """Whether a text is in the set."""
        state = 0
        for byte in text.encode():
            state = int(self.following[state, byte])
            if state == DEAD:
                return False
        return bool(self.accepting[state])

    def __and__(self, other: Automaton) -> Automaton:
        """What both accept.

        Raises:
            ConfigError: the product has too many states.
        """
        width = len(other.accepting)
        known = frontier = np.zeros(1, dtype=np.int64)
        rows: list[NDArray[np.int64]] = []
        order: list[NDArray[np.int64]] = []
        while len(frontier):
            mine, theirs = self.following[frontier // width], other.following[frontier % width]
            reached = np.where((mine == DEAD) | (theirs == DEAD), DEAD, mine.astype(np.int64) * width + theirs)
            rows.append(reached)
            order.append(frontier)
            frontier = np.setdiff1d(reached, np.append(known, DEAD))
            known = np.append(known, frontier)
            if len(known) > MOST_STATES:
                raise ConfigError(
                    f"these constraints together take more than {MOST_STATES:,} states; leave one out, or make its "
                    "counts smaller"
                )
        codes, reached = np.concatenate(order), np.concatenate(rows)
        by_code = codes.argsort()
        place = np.append(by_code, DEAD)
        found = np.where(reached == DEAD, len(codes), np.searchsorted(codes[by_code], reached))
        accepting = self.accepting[codes // width] & other.accepting[codes % width]
        return Automaton(place[found].astype(np.int32), accepting).minimal()

    def __invert__(self) -> Automaton:
        """The texts that are not accepted: valid UTF-8 without the byte 0, as everywhere."""
        num_states = len(self.accepting)
        following = np.vstack([self.following, np.full((1, BYTES), DEAD, dtype=np.int32)])
        following[following == DEAD] = num_states
        return Automaton(following, np.append(~self.accepting, True)) & Automaton.of_pattern("(?s:.*)")

    def beside(self, other: Automaton) -> tuple[Automaton, int]:
        """Both as one automaton with the fewest states, and where strings of the other begin, `DEAD` if it has none."""
        here = len(self.accepting)
        shifted = np.where(other.following == DEAD, DEAD, other.following + here)
        following = np.vstack([self.following, shifted]).astype(np.int32)
        # No text has this byte: a way from the one beginning to the other, for as long as states are merged.
        following[0, LINK] = here
        both = Automaton(following, np.append(self.accepting, other.accepting)).minimal()
        begins = int(both.following[0, LINK])
        both.following[:, LINK] = DEAD
        return both, begins

    def minimal(self) -> Automaton:
        """The same set with the fewest states."""
        alive = _alive(self.following, self.accepting)
        if not alive[0]:
            return Automaton(np.full((1, BYTES), DEAD, dtype=np.int32), np.zeros(1, dtype=np.bool_))
        following = np.where(np.append(alive, False)[self.following], self.following, DEAD)
        columns = np.unique(following, axis=1)
        # The dead state, which the index −1 means, is a group of its own.
        # Groups are numbered from 0 on: where all accept there is one at first, or its first split would go unnoticed.
        group, count = np.where(alive, self.accepting & ~self.accepting[alive].all(), -1).astype(np.int64), 0
        mixing = np.random.default_rng(0).integers(2**64, size=columns.shape[1] + 1, dtype=np.uint64)
        while count != (count := int(group.max()) + 1):
            rows = np.column_stack([group, np.append(group, -1)[columns]])
            # A number for each row, since rows sort slowly: which are equal is checked below.
            _, one, found = np.unique(rows.astype(np.uint64) @ mixing, return_index=True, return_inverse=True)
            assert np.array_equal(rows, rows[one[found]])
            group = np.where(alive, found, -1)
            # Numbers from 0 on, the beginning first.
            names = np.unique(group[alive])
            names = np.append(group[0], names[names != group[0]])
            ranks = np.empty(int(names.max()) + 1, dtype=np.int64)
            ranks[names] = np.arange(len(names))
            group = np.where(alive, ranks[np.maximum(group, 0)], -1)
        first = np.array([int((group == k).argmax()) for k in range(count)])
        return Automaton(np.append(group, DEAD)[following[first]].astype(np.int32), self.accepting[first])


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> Automaton:
    index: Any = _index(f"{MARK_PATTERN}(?:{pattern}){MARK_PATTERN}")
    if index is None:
        return Automaton(np.full((1, BYTES), DEAD, dtype=np.int32), np.zeros(1, dtype=np.bool_))
    transitions, final = index.get_transitions(), index.get_final_states()
    before = index.get_initial_state()
    place = {transitions.pop(before)[MARK]: 0}
    for state in transitions:
        place.setdefault(state, len(place))
    following = np.full((len(place), BYTES), DEAD, dtype=np.int32)
    accepting = np.zeros(len(place), dtype=np.bool_)
    for state, moves in transitions.items():
        accepting[place[state]] = moves.get(MARK) in final
        for byte, reached in moves.items():
            if byte not in (MARK, BYTES):
                following[place[state], byte] = place[reached]
    return Automaton(following, accepting).minimal()


def _index(pattern: str) -> Any:
    """What `outlines-core` makes of a pattern over bytes; None if it matches nothing.

    Raises:
        ConfigError: it does not compile.
    """
    try:
        from outlines_core import Index, Vocabulary
    except ImportError as error:
        raise ConfigError(
            "constraints on the characters of a text need outlines-core: pip install 'twistlm[constraints]'"
        ) from error
    try:
        return Index(pattern, Vocabulary(BYTES, {bytes([byte]): [byte] for byte in range(BYTES)}))
    except ValueError as error:
        if "provided is incompatible" in str(error):
            return None
        raise ConfigError(f"pattern {shortened(pattern)} does not compile: {shortened(error)}") from error


def _alive(following: NDArray[np.int32], accepting: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """States from which something is accepted, and that something leads to."""
    ends, before = accepting, -1
    while (count := int(ends.sum())) != before:
        ends, before = ends | np.append(ends, False)[following].any(1), count
    reached = np.zeros(len(accepting), dtype=np.bool_)
    frontier = np.zeros(1, dtype=np.int64)
    while len(frontier):
        reached[frontier] = True
        nearby = np.unique(following[frontier])
        frontier = nearby[(nearby != DEAD) & ~np.append(reached, True)[nearby]]
    return ends & reached
