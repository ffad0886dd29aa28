"""Texts of given lengths."""

from dataclasses import dataclass
from typing import Literal

from twistlm.automata.automaton import Automaton
from twistlm.automata.patterns import check_states
from twistlm.core.errors import ConfigError
from twistlm.core.plain import make_plain
from twistlm.core.registry import register
from twistlm.potentials.constraint import ANY_LENGTH, Constraint

PATTERNS = {
    # What is between spaces; the last one needs none after it. No text has NUL (see `Automaton.of_pattern`).
    "words": r"\s*(?:[^\s\x00]+\s+){{{fewer}}}[^\s\x00]+\s*",
    # Each ends with its marks; what has none is not a sentence.
    "sentences": r"(?:[^.!?\x00]+[.!?]+){{{all}}}\s*",
}


@register("potential", "length")
@dataclass(frozen=True)
class Length(Constraint):
    """φ = 1 if the new text has at least and at most so many tokens, words or sentences, else 0.

    Words are what is between spaces. A sentence ends with full stops, question or exclamation marks, wherever they
    stand ("3.5" has one), and the text ends with a sentence. EOS is not counted among the tokens.

    Attributes:
        min: the fewest.
        max: the most; None for any number.
        unit: of what.
        constrain: samplers keep to it; False makes it a potential like any other.

    Raises:
        ConfigError: the numbers are not in order, or the unit is unknown.
    """

    min: int = 1
    max: int | None = None
    unit: Literal["tokens", "words", "sentences"] = "words"
    constrain: bool = True

    def __post_init__(self) -> None:
        """Check the numbers."""
        make_plain(self)
        if self.unit != "tokens" and self.unit not in PATTERNS:
            raise ConfigError(f"unit must be 'tokens', 'words' or 'sentences', not {self.unit!r}")
        least = 0 if self.unit == "tokens" else 1
        if self.min < least or (self.max is not None and self.max < self.min):
            raise ConfigError(f"min must be at least {least} and max at least min, not {self.min} and {self.max}")

    @property
    def lengths(self) -> tuple[int, float]:
        """Of tokens."""
        return (self.min, float("inf") if self.max is None else self.max) if self.unit == "tokens" else ANY_LENGTH

    def automaton(self) -> Automaton:
        """The texts of these lengths; any at all where tokens are counted."""
        if self.unit == "tokens":
            return Automaton.of_pattern("(?s:.*)")
        most = "" if self.max is None else str(self.max)
        fewer = f"{self.min - 1},{most and self.max and self.max - 1}"
        pattern = PATTERNS[self.unit].format(all=f"{self.min},{most}", fewer=fewer)
        check_states(pattern, f"{self}")
        return Automaton.of_pattern(pattern)
