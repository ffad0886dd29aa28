"""Texts that are JSON by a schema."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twistlm.automata.automaton import Automaton
from twistlm.core.errors import ConfigError
from twistlm.core.registry import register
from twistlm.potentials.constraint import Constraint


@register("potential", "json_schema")
@dataclass(frozen=True)
class JsonSchema(Constraint):
    """φ = 1 if the text of the new tokens is JSON that a schema allows, else 0.

    Properties come in the schema's order. What cannot be said by a regular expression (recursion, `uniqueItems`, bounds
    of numbers) is not supported; `Grammar(…, syntax="json_schema")` takes more, and knows less of what is to come.

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
        given: Any = self.schema
        if isinstance(given, Mapping | bool):
            object.__setattr__(self, "schema", json.dumps(given))
        self.automaton()

    def automaton(self) -> Automaton:
        """The texts that the schema allows."""
        return Automaton.of_pattern(f"(?:{self.before})(?:{self._pattern()})")

    def _pattern(self) -> str:
        try:
            from outlines_core.json_schema import build_regex_from_schema
        except ImportError as error:
            raise ConfigError("JSON schemas need outlines-core: pip install 'twistlm[constraints]'") from error
        try:
            json.loads(self.schema)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"schema is not JSON ({error}): {str(self.schema)[:80]!r}") from error
        try:
            return str(build_regex_from_schema(self.schema, self.whitespace))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"schema is not supported: {error}; Grammar(…, syntax='json_schema') may take it"
            ) from error
