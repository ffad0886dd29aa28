"""Texts with given words, and without others."""

import re
from dataclasses import dataclass
from functools import reduce
from operator import and_

from twistlm.automata.automaton import Automaton
from twistlm.core.errors import ConfigError
from twistlm.core.plain import make_plain
from twistlm.core.registry import register
from twistlm.potentials.constraint import Constraint


@register("potential", "words")
@dataclass(frozen=True)
class Words(Constraint):
    """φ = 1 if the text of the new tokens has all of some words, any of others, and none of others still, else 0.

    A word is found where no letter, digit or underscore is beside it, the prompt's last one included: "cat" is not in
    "concatenate". The text ends at such a place. Phrases ("New York") count as they are written.

    Attributes:
        all_of: each of them must be there.
        any_of: at least one of them must be there, if there are any.
        none_of: none of them may be there.
        match_case: capital letters count.
        constrain: samplers keep to it; False makes it a potential like any other.

    Raises:
        ConfigError: no word is given, or one is empty.
    """

    all_of: tuple[str, ...] = ()
    any_of: tuple[str, ...] = ()
    none_of: tuple[str, ...] = ()
    match_case: bool = True
    constrain: bool = True

    def __post_init__(self) -> None:
        """Check every word."""
        make_plain(self)
        for name in ("all_of", "any_of", "none_of"):
            given = getattr(self, name)
            words = (given,) if isinstance(given, str) else tuple(given)
            if not all(word.strip() for word in words):
                raise ConfigError(f"{name} holds an empty word: {list(words)}")
            object.__setattr__(self, name, words)
        if not (self.all_of or self.any_of or self.none_of):
            raise ConfigError("no word is given; name some in all_of, any_of or none_of")

    def automaton(self) -> Automaton:
        """The texts with these words."""
        return self._all(r"(?:.*\W)?")

    def continued(self) -> Automaton:
        """The texts with these words, after a letter: what they begin with is the end of a word."""
        return self._all(r".*\W")

    def _all(self, before: str) -> Automaton:
        parts = [self._with(before, word) for word in self.all_of]
        parts += [self._with(before, *self.any_of)] if self.any_of else []
        parts += [~self._with(before, *self.none_of)] if self.none_of else []
        return reduce(and_, parts)

    def _with(self, before: str, *words: str) -> Automaton:
        """Texts that have any of the words, after what may stand before it."""
        flags = "s" if self.match_case else "si"
        either = "|".join(re.escape(word) for word in words)
        return Automaton.of_pattern(rf"(?{flags}:{before}(?:{either})(?:\W.*)?)")
