"""A JSON schema as a pattern of the texts that it allows.

Every keyword is either honoured or refused. What is written is never more than the schema allows: objects have the
properties that it names, in its order, and no others.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from itertools import combinations
from typing import Any
from urllib.parse import unquote

from twistlm.automata.json_numbers import INTEGER, NUMBER, Bound, equal, integers, numbers
from twistlm.automata.json_strings import FORMATS, LETTER, said, searched
from twistlm.core.errors import ConfigError
from twistlm.core.storage import shown_json

# Of an automaton, about; and letters of a pattern. Either takes seconds.
MOST_STATES, MOST_LETTERS = 20_000, 200_000
# States that a letter takes which may be any of Unicode's.
STATES_OF_LETTER = 20

# Which say nothing of what is allowed.
ANNOTATIONS = frozenset(
    ("$schema", "$id", "$anchor", "$comment", "$defs", "definitions", "title", "description", "default")
) | {"examples", "deprecated", "readOnly", "writeOnly", "discriminator"}
BOUNDS = frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"))
KEYWORDS: dict[str, frozenset[str]] = {
    "null": frozenset(),
    "boolean": frozenset(),
    "integer": BOUNDS,
    "number": BOUNDS,
    "string": frozenset(("minLength", "maxLength", "pattern", "format")),
    "array": frozenset(("items", "prefixItems", "minItems", "maxItems")),
    "object": frozenset(("properties", "required", "additionalProperties")),
}
IMPLIED = {"properties": "object", "additionalProperties": "object", "items": "array", "prefixItems": "array"}
TYPES: dict[str, tuple[type, ...]] = {
    "null": (type(None),),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "array": (list,),
    "object": (dict,),
}


def pattern_of(schema: Any, whitespace: str) -> str:
    """The pattern of a schema's texts; `whitespace` is that of what may stand between their parts.

    Raises:
        ConfigError: it is no schema, or uses what is not supported: the keyword and its place.
    """
    return _Schema(schema, whitespace).of(schema, "#")


class _Schema:
    """One that is being written; a place in it is a JSON pointer."""

    def __init__(self, root: Any, whitespace: str) -> None:
        self.root, self.space = root, whitespace
        self._states, self._copies = 0, 1
        self._open: list[str] = []

    def of(self, schema: Any, place: str) -> str:
        """The pattern of the texts that a part of it allows."""
        if not isinstance(schema, Mapping):
            raise ConfigError(f"{place} is {shown_json(schema)}, not an object that names a type")
        if schema is not self.root:
            _refuse_base(schema, place)
        given = {key for key in schema if key not in ANNOTATIONS and not key.startswith("x-")}
        for keyword, write in {
            "$ref": self._referred,
            "allOf": self._all,
            "anyOf": self._any,
            "oneOf": self._one,
            "enum": self._values,
            "const": self._values,
        }.items():
            if keyword in given:
                _refuse(given - {keyword} - ({"type"} if keyword in ("enum", "const") else set()), place, keyword)
                return write(schema, place)
        kinds = _kinds(schema, place)
        known = frozenset[str]().union(*(KEYWORDS[kind] for kind in kinds))
        _refuse(given - known - {"type"}, place)
        if not kinds:
            raise ConfigError(f"{place} names no type, which allows any JSON")
        ways = [self._typed(kind, schema, place) for kind in kinds]
        return ways[0] if len(ways) == 1 else f"(?:{'|'.join(ways)})"

    def _typed(self, kind: str, schema: Mapping[str, Any], place: str) -> str:
        if kind == "string":
            return self._string(schema, place)
        if kind == "array":
            return self._array(schema, place)
        if kind == "object":
            return self._object(schema, place)
        if bounds := {name: _number(schema, name, place) for name in KEYWORDS[kind] if name in schema}:
            self._take(STATES_OF_LETTER * max(len(str(bound)) for bound in bounds.values()), place)
            try:
                return _bounded(kind, bounds)
            except ConfigError as error:
                raise ConfigError(f"{error} at {place}") from error
        self._take(STATES_OF_LETTER, place)
        return {"null": "null", "boolean": "(?:true|false)", "integer": INTEGER, "number": NUMBER}[kind]

    def _string(self, schema: Mapping[str, Any], place: str) -> str:
        kinds = [each for each in ("pattern", "format", "minLength", "maxLength") if each in schema]
        if len(kinds) > 1 and kinds != ["minLength", "maxLength"]:
            raise ConfigError(f"{kinds[1]} beside {kinds[0]} at {place}")
        if "pattern" in schema:
            pattern = schema["pattern"]
            if not isinstance(pattern, str):
                raise ConfigError(f"pattern at {place} is {shown_json(pattern)}, not text")
            self._take(STATES_OF_LETTER * len(pattern), place)
            try:
                return f'"{searched(pattern)}"'
            except ConfigError as error:
                raise ConfigError(f"at {place}, {error}") from error
        if "format" in schema:
            if schema["format"] not in FORMATS:
                raise ConfigError(
                    f"format {shown_json(schema['format'])} at {place}, which is none of {', '.join(FORMATS)}"
                )
            self._take(len(FORMATS[schema["format"]]), place)
            return f'"{FORMATS[schema["format"]]}"'
        least, most = _counts(schema, "minLength", "maxLength", place)
        self._take(STATES_OF_LETTER * max(1, least, most or 0), place)
        return f'"{LETTER}{_times(least, most)}"'

    def _array(self, schema: Mapping[str, Any], place: str) -> str:
        least, most = _counts(schema, "minItems", "maxItems", place)
        if "prefixItems" in schema:
            parts = _list(schema, "prefixItems", place)
            if schema.get("items", False) is not False:
                raise ConfigError(f"items beside prefixItems at {place}")
            if len(parts) < least or (most is not None and len(parts) > most):
                raise ConfigError(f"minItems or maxItems at {place} does not go with {len(parts)} prefixItems")
            written = [self.of(part, f"{place}/prefixItems/{at}") for at, part in enumerate(parts)]
            return self._between(r"\[", self._joined(written), r"\]")
        if "items" not in schema:
            raise ConfigError(f"an array without items at {place}, which allows any JSON")
        if schema["items"] is False or most == 0:
            if least > 0:
                raise ConfigError(f"minItems at {place} is {least}, and no items are allowed")
            return self._between(r"\[", "", r"\]")
        with self._repeated(max(1, least, most or 0)):
            item = self.of(schema["items"], f"{place}/items")
        more = _times(max(0, least - 1), None if most is None else most - 1)
        items = f"{item}(?:{self.space},{self.space}{item}){more}"
        return self._between(r"\[", items if least else f"(?:{items})?", r"\]")

    def _object(self, schema: Mapping[str, Any], place: str) -> str:
        properties, others = schema.get("properties"), schema.get("additionalProperties")
        if not isinstance(properties or {}, Mapping):
            raise ConfigError(f"properties at {place} is {shown_json(properties)}, not an object")
        required = _list(schema, "required", place) if "required" in schema else []
        if unnamed := [name for name in required if not isinstance(name, str) or name not in (properties or {})]:
            raise ConfigError(f"required at {place} names {shown_json(unnamed[0])}, which is not among its properties")
        if isinstance(others, Mapping) and properties:
            raise ConfigError(f"additionalProperties beside properties at {place}")
        if not properties and isinstance(others, Mapping):
            self._take(STATES_OF_LETTER, place)
            value = self.of(others, f"{place}/additionalProperties")
            pair = self._pair(f'"{LETTER}*"', value)
            return self._between(r"\{", f"(?:{pair}(?:{self.space},{self.space}{pair})*)?", r"\}")
        if properties is None and others is not False:
            raise ConfigError(f"an object without properties at {place}, which allows any JSON")
        pairs = {}
        for name, part in (properties or {}).items():
            self._take(len(name), place)
            pairs[name] = self._pair(_literal(name, self.space), self.of(part, f"{place}/properties/{_step(name)}"))
        return self._between(r"\{", self._in_order(pairs, set(required), place), r"\}")

    def _in_order(self, pairs: Mapping[str, str], required: set[Any], place: str) -> str:
        """Properties one after the other, each that is not required there or not."""
        comma, names = f"{self.space},{self.space}", list(pairs)
        last = max((at for at, name in enumerate(names) if name in required), default=None)
        if sum(map(len, pairs.values())) * (len(pairs) if last is None else 1) > MOST_LETTERS:
            raise ConfigError(f"{place} is too large for an automaton; make it smaller, or its properties required")
        if last is not None:
            # The last one that is certain has no comma: each before it brings one along, and so does each behind.
            before = [pairs[name] + comma for name in names[:last]]
            after = [comma + pairs[name] for name in names[last + 1 :]]
            parts = zip(names, [*before, pairs[names[last]], *after], strict=True)
            return "".join(part if name in required else f"(?:{part})?" for name, part in parts)
        ways = [
            pairs[name] + "".join(f"(?:{comma}{pairs[n]})?" for n in names[at + 1 :]) for at, name in enumerate(names)
        ]
        return f"(?:{'|'.join(ways)})?" if ways else ""

    def _values(self, schema: Mapping[str, Any], place: str) -> str:
        values = _list(schema, "enum", place) if "enum" in schema else [schema["const"]]
        kinds = _kinds(schema, place)
        allowed = [value for value in values if not kinds or any(_is(value, kind) for kind in kinds)]
        if not allowed:
            raise ConfigError(f"no value is allowed at {place}")
        written = [_literal(value, self.space) for value in allowed]
        self._take(len(json.dumps(allowed)), place)
        return f"(?:{'|'.join(written)})"

    def _referred(self, schema: Mapping[str, Any], place: str) -> str:
        reference = schema["$ref"]
        if reference in self._open:
            raise ConfigError(f"$ref at {place} leads back to {shown_json(reference)}")
        self._open.append(reference)
        found = self.of(self._resolved(schema, place), reference)
        self._open.pop()
        return found

    def _resolved(self, schema: Any, place: str) -> Any:
        """A schema, or the one that it refers to."""
        if not isinstance(schema, Mapping) or "$ref" not in schema:
            return schema
        reference, found = schema["$ref"], self.root
        steps = unquote(reference).split("/") if isinstance(reference, str) else [""]
        for step in steps[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            found = found.get(name) if isinstance(found, Mapping) else None
            _refuse_base(found, reference)
        if steps[0] != "#" or found is None:
            raise ConfigError(f"$ref at {place} is {shown_json(reference)}, which is not in this schema")
        return found

    def _all(self, schema: Mapping[str, Any], place: str) -> str:
        parts = _list(schema, "allOf", place)
        if len(parts) != 1:
            raise ConfigError(f"allOf of {len(parts)} schemas at {place}")
        return self.of(parts[0], f"{place}/allOf/0")

    def _any(self, schema: Mapping[str, Any], place: str, keyword: str = "anyOf") -> str:
        parts = _list(schema, keyword, place)
        if not parts:
            raise ConfigError(f"{keyword} at {place} is empty")
        return f"(?:{'|'.join(self.of(part, f'{place}/{keyword}/{at}') for at, part in enumerate(parts))})"

    def _one(self, schema: Mapping[str, Any], place: str) -> str:
        for one, other in combinations(_list(schema, "oneOf", place), 2):
            if not self._apart(one, other, place):
                raise ConfigError(f"oneOf at {place}, two of whose schemas may allow the same (write anyOf)")
        return self._any(schema, place, "oneOf")

    def _apart(self, one: Any, other: Any, place: str) -> bool:
        """Whether it is plain that nothing is allowed by two schemas: by their types, values, or a property's."""
        one, other = self._resolved(one, place), self._resolved(other, place)
        if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
            return False
        values = [each.get("enum", [each["const"]] if "const" in each else None) for each in (one, other)]
        if all(isinstance(each, list) for each in values):
            return not any(value in values[1] for value in values[0])
        kinds = [_kinds(each, place) for each in (one, other)]
        # An integer is a number, and a type that is only implied rules out nothing.
        named = [{kind.replace("integer", "number") for kind in each} for each in kinds]
        if "type" in one and "type" in other and not named[0] & named[1]:
            return True
        shared = set(_required(one)) & set(_required(other)) if kinds == [["object"], ["object"]] else set()
        return any(self._apart(one["properties"][name], other["properties"][name], place) for name in shared)

    def _pair(self, name: str, value: str) -> str:
        return f"{name}{self.space}:{self.space}{value}"

    def _joined(self, parts: list[str]) -> str:
        return f"{self.space},{self.space}".join(parts)

    def _between(self, opening: str, parts: str, closing: str) -> str:
        return f"{opening}{self.space}{parts}{self.space}{closing}" if parts else f"{opening}{self.space}{closing}"

    @contextmanager
    def _repeated(self, times: int) -> Iterator[None]:
        """What is written meanwhile counts so many times."""
        self._copies *= times
        yield
        self._copies //= times

    def _take(self, states: int, place: str) -> None:
        self._states += self._copies * states
        if self._states > MOST_STATES:
            raise ConfigError(
                f"more than {MOST_STATES:,} states up to {place}; leave its counts out, or make them smaller"
            )


def _refuse(keywords: set[str], place: str, beside: str = "") -> None:
    if keywords:
        raise ConfigError(f"{min(keywords)}{beside and f' beside {beside}'} at {place}")


def _refuse_base(schema: Any, place: str) -> None:
    """Refuse a part of a schema that is a schema of its own: each `$ref` in it is relative to it."""
    name = schema.get("$id") if isinstance(schema, Mapping) else None
    # A fragment alone was an anchor before 2019, and `properties` may have this name.
    if isinstance(name, str) and not name.startswith("#"):
        raise ConfigError(f"$id {shown_json(name)} within the schema, at {place}, which changes what $ref means there")


def _kinds(schema: Mapping[str, Any], place: str) -> list[str]:
    """The types that a schema names, or that its keywords imply."""
    given = schema.get("type", list(dict.fromkeys(kind for key, kind in IMPLIED.items() if key in schema)))
    kinds = given if isinstance(given, list) else [given]
    for kind in kinds:
        if not isinstance(kind, str) or kind not in KEYWORDS:
            raise ConfigError(f"type {shown_json(kind)} at {place}, which is none of {', '.join(KEYWORDS)}")
    return kinds


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, float) and kind == "integer":
        return value.is_integer()
    return isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _list(schema: Mapping[str, Any], keyword: str, place: str) -> list[Any]:
    if not isinstance(schema[keyword], list):
        raise ConfigError(f"{keyword} at {place} is {shown_json(schema[keyword])}, not a list")
    return list(schema[keyword])


def _required(schema: Mapping[str, Any]) -> list[str]:
    """The properties that are certain to be there."""
    names, properties = schema.get("required"), schema.get("properties")
    if not (isinstance(names, list) and isinstance(properties, Mapping)):
        return []
    return [name for name in names if isinstance(name, str) and name in properties]


def _number(schema: Mapping[str, Any], keyword: str, place: str) -> Decimal:
    value = schema[keyword]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{keyword} at {place} is {shown_json(value)}, not a number")
    # As it is written: 1e23 is a whole number, and no float.
    return Decimal(repr(value))


def _bounded(kind: str, given: Mapping[str, Decimal]) -> str:
    """The pattern of the numbers of a kind, by the keywords that are about their size."""
    step = given.get("multipleOf", Decimal(1))
    if kind == "integer":
        if step <= 0 or step != math.floor(step):
            raise ConfigError(f"multipleOf {step} (must be a whole number, at least 1)")
        lows = [math.ceil(given["minimum"])] if "minimum" in given else []
        lows += [math.floor(given["exclusiveMinimum"]) + 1] if "exclusiveMinimum" in given else []
        highs = [math.floor(given["maximum"])] if "maximum" in given else []
        highs += [math.ceil(given["exclusiveMaximum"]) - 1] if "exclusiveMaximum" in given else []
        return integers(max(lows, default=None), min(highs, default=None), int(step))
    for name, bound in given.items():
        if name == "multipleOf" or bound != math.floor(bound):
            raise ConfigError(f"{name} {bound} of a number (bounds must be whole, and multiples are of integers only)")
    least = [Bound(int(given[name]), name == "minimum") for name in ("minimum", "exclusiveMinimum") if name in given]
    most = [Bound(int(given[name]), name == "maximum") for name in ("maximum", "exclusiveMaximum") if name in given]
    low = max(least, key=lambda bound: (bound.value, not bound.included), default=None)
    return numbers(low, min(most, key=lambda bound: (bound.value, bound.included), default=None))


def _counts(schema: Mapping[str, Any], least: str, most: str, place: str) -> tuple[int, int | None]:
    for name in (least, most):
        count = schema.get(name, 0)
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ConfigError(f"{name} at {place} is {shown_json(count)}, not a whole number from 0 on")
    low, high = schema.get(least, 0), schema.get(most)
    if high is not None and high < low:
        raise ConfigError(f"{most} at {place} is {high}, less than {least}, {low}")
    return low, high


def _times(least: int, most: int | None) -> str:
    return "*" if (least, most) == (0, None) else f"{{{least},{'' if most is None else most}}}"


def _literal(value: Any, space: str) -> str:
    """A value as JSON writes it."""
    if isinstance(value, list):
        inner = f"{space},{space}".join(_literal(each, space) for each in value)
        return rf"\[{space}{inner}{space}\]" if value else rf"\[{space}\]"
    if isinstance(value, dict):
        pairs = (f"{_literal(key, space)}{space}:{space}{_literal(each, space)}" for key, each in value.items())
        return rf"\{{{space}{f'{space},{space}'.join(pairs)}{space}\}}" if value else rf"\{{{space}\}}"
    if isinstance(value, str):
        return said(value)
    return json.dumps(value) if value is None or isinstance(value, bool) else equal(value)


def _step(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
