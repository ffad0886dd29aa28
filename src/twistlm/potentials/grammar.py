"""Texts of a grammar."""

from dataclasses import dataclass
from typing import Literal

from twistlm.automata import grammar as parsing
from twistlm.automata.automaton import Automaton
from twistlm.core.errors import ConfigError
from twistlm.core.plain import make_plain
from twistlm.core.registry import register
from twistlm.potentials.constraint import Constraint

COUNTED = (
    "JSON counts with the schema's properties in its order and others after them. Not counted, though valid: white "
    "space around the JSON; a point or an exponent in an integer, and an exponent in a number with bounds; in strings "
    "\\/ and \\u of letters that are no control characters."
)


@register("potential", "grammar")
@dataclass(frozen=True)
class Grammar(Constraint):
    """φ = 1 if the text of the new tokens is one of a context-free grammar's, else 0.

    Beyond what a pattern can say: brackets that nest, JSON schemas that refer to themselves. Samplers take tokens that
    keep the text possible; how many more it takes is not known, so that a text may be cut off by `num_tokens`.

    Attributes:
        grammar: in Lark's syntax, as llguidance reads it, with a rule `start`; or a JSON schema.
        syntax: which of the two.
        constrain: samplers keep to it; False makes it a potential like any other.

    Raises:
        ConfigError: it does not compile.
    """

    grammar: str
    syntax: Literal["lark", "json_schema"] = "lark"
    constrain: bool = True

    def __post_init__(self) -> None:
        """Have it compiled."""
        make_plain(self)
        if self.syntax not in ("lark", "json_schema"):
            raise ConfigError(f"syntax is {self.syntax!r}; choose lark or json_schema")
        _ = self.grammars

    def automaton(self) -> Automaton:
        """All texts: what the grammar allows of them, no automaton can say."""
        return Automaton.of_pattern("(?s:.*)")

    @property
    def counted(self) -> str:
        """Which ways to write the same JSON count, for a schema; "" for a grammar of Lark's."""
        return COUNTED if self.syntax == "json_schema" else ""

    @property
    def grammars(self) -> tuple[str, ...]:
        """Itself, as the parser reads it."""
        if self.syntax == "json_schema":
            return (parsing.of_json_schema(self.grammar),)
        return (parsing.check(self.grammar),)
