"""Texts that are JSON by a schema."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twistlm.automata import grammar
from twistlm.automata.automaton import Automaton
from twistlm.automata.json_schema import pattern_of
from twistlm.automata.patterns import in_rust
from twistlm.core.errors import ConfigError
from twistlm.core.plain import make_plain
from twistlm.core.registry import register
from twistlm.potentials.constraint import Constraint

COUNTED = (
    "JSON counts with the schema's properties in its order and no others. Not counted, though valid: white space after "
    "the JSON, and more than one letter of it before; an exponent in a number that the schema gives or limits, and in "
    "an integer one below 0 or behind a fraction; any escape in a format; \\u for what a pattern matches, and of "
    "printable ASCII in names, enum and const; half of a surrogate pair."
)


@register("potential", "json_schema")
@dataclass(frozen=True)
class JsonSchema(Constraint):
    """φ = 1 if the text of the new tokens is JSON that a schema allows, else 0.

    Properties come in the schema's order, and no others do. Every keyword is either honoured or refused: what cannot be
    said by a regular expression (recursion, `uniqueItems`, any JSON at all) is not supported;
    `Grammar(…, syntax="json_schema")` takes more, and knows less of what is to come.

    Attributes:
        schema: a JSON schema, as text or as what `json.loads` makes of it.
        before: a pattern of what may stand before the JSON: most answers begin with a space.
        whitespace: a pattern of what may stand between its parts; by default all that JSON allows.
        constrain: samplers keep to it; False makes it a potential like any other.

    Raises:
        ConfigError: it is not JSON, not a schema, or uses what is not supported.
    """

    schema: str
    before: str = r"\s?"
    whitespace: str = r"[ \t\n\r]*"
    constrain: bool = True

    def __post_init__(self) -> None:
        """Write the schema as text, and compile it."""
        make_plain(self)
        given: Any = self.schema
        if isinstance(given, Mapping | bool):
            object.__setattr__(self, "schema", json.dumps(given))
        self.automaton()

    def automaton(self) -> Automaton:
        """The texts that the schema allows."""
        return Automaton.of_pattern(f"{in_rust(self.before)}{self._pattern(in_rust(self.whitespace))}")

    @property
    def counted(self) -> str:
        """Which ways to write the same JSON count."""
        return COUNTED

    def _pattern(self, whitespace: str) -> str:
        try:
            schema = json.loads(self.schema)
            # Numbers and letters that JSON has not, though Python reads them.
            json.dumps(schema, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError) as error:
            raise ConfigError(f"schema is not JSON ({error}): {str(self.schema)[:80]!r}") from error
        try:
            return pattern_of(schema, whitespace)
        except ConfigError as error:
            raise ConfigError(f"schema is not supported: {error}; {self._remedy()}") from error

    def _remedy(self) -> str:
        try:
            grammar.of_json_schema(self.schema)
        except ConfigError:
            return "leave it out, or write it otherwise"
        return "Grammar(…, syntax='json_schema') takes it"
