"""Potentials by name, as they are written on a command line."""

import dataclasses
import re
import types
from collections.abc import Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from twistlm.core.errors import ConfigError
from twistlm.core.registry import lookup
from twistlm.potentials.protocol import Potential
from twistlm.potentials.specs import from_spec

# A comma ends a value only before the next "key=": patterns and lists may hold commas. "\," is one that never does.
NEXT = re.compile(r"(?<!\\),(?=\s*[A-Za-z_]\w*\s*=)")
# In this order are the types of a union tried; any text is a str.
SCALARS = (int, float, bool)


def named(expression: str) -> Potential:
    """The potential that "NAME" or "NAME:key=value,key=value" describes, for every registered one.

    Keys are the arguments of its class. Spaces in a text count ("continuation:continuation= and"). A list is written
    with commas, nothing as none, and a potential among the arguments in brackets:
    "threshold:scorer=(jigsaw:label=insult),eta=0.5".

    Raises:
        ConfigError: name, key or value is unknown, a value is missing, or it cannot be given as text (a function).
    """
    name, _, options = expression.partition(":")
    name = name.strip()
    cls = lookup("potential", name).value
    fields = {each.name: each for each in dataclasses.fields(cls) if each.init} if dataclasses.is_dataclass(cls) else {}
    kinds = _kinds(cls, name)
    given: dict[str, Any] = {}
    while options.strip():
        key, equals, rest = options.partition("=")
        key = key.strip()
        if not equals or key not in fields:
            takes = ", ".join(fields) or "no options"
            raise ConfigError(
                f"potential {name!r} has no {key!r}; write it as {name}:key=value, of which it takes {takes}"
            )
        if key in given:
            raise ConfigError(f"potential {name!r}: {key} is given twice; give it once")
        value, options = _value(rest, kinds[key], f"potential {name!r}: {key}")
        given[key] = _converted(kinds[key], value, f"potential {name!r}: {key}")
    for key, each in fields.items():
        required = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        if required and key not in given:
            if not _has_text(kinds[key]):
                raise _no_text(f"potential {name!r}: {key}")
            raise ConfigError(f"potential {name!r} needs {key}: write {name}:{key}=…")
    return from_spec({"name": name, **given})


def _kinds(cls: type, name: str) -> dict[str, Any]:
    """The annotated types of its arguments."""
    try:
        return get_type_hints(cls)
    except (NameError, TypeError) as error:
        raise ConfigError(
            f"potential {name!r} has annotations that cannot be read ({error}); put them right"
        ) from error


def _value(text: str, kind: Any, where: str) -> tuple[str, str]:
    """The value that `text` begins with, and what follows its comma."""
    if kind is not Potential or not text.lstrip().startswith("("):
        found = NEXT.search(text)
        end = len(text) if found is None else found.start()
        return text[:end].replace("\\,", ","), text[end + 1 :]
    text, depth = text.lstrip(), 0
    for at, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            after = text[at + 1 :].lstrip()
            if after and not after.startswith(","):
                raise ConfigError(f"{where}: {after!r} follows the brackets; separate options by commas")
            return text[1:at], after[1:]
    raise ConfigError(f"{where} = {text!r} has a bracket that is not closed; close it")


def _converted(kind: Any, text: str, where: str) -> Any:
    """`text` as a value of an annotated type."""
    from pydantic import TypeAdapter, ValidationError

    if not _has_text(kind):
        raise _no_text(where)
    if kind is Potential:
        return named(text)
    members = _members(kind)
    if type(None) in members and text.strip().lower() == "none":
        return None
    reasons = []
    for member in sorted((each for each in members if _has_text(each) and each is not type(None)), key=_rank):
        if _is_list(member):
            return tuple(_converted(get_args(member)[0], item.strip(), where) for item in text.split(","))
        try:
            return TypeAdapter(member).validate_strings(text if member is str else text.strip())
        except ValidationError as error:
            reasons.append(error.errors()[0]["msg"])
    raise ConfigError(f"{where} = {text!r} is not valid: {'; '.join(reasons)}")


def _members(kind: Any) -> tuple[Any, ...]:
    """The types of a union; any other type by itself."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _rank(kind: Any) -> int:
    return 0 if kind in SCALARS or get_origin(kind) is Literal else 1 if kind is str else 2


def _is_list(kind: Any) -> bool:
    """Whether it holds any number of values of one type."""
    arguments = get_args(kind)
    return get_origin(kind) is Sequence or (get_origin(kind) is tuple and arguments[1:] == (Ellipsis,))


def _has_text(kind: Any) -> bool:
    """Whether a value of this type can be written on a command line."""
    if _is_list(kind):
        return get_args(kind)[0] in (str, *SCALARS)
    members = _members(kind)
    if len(members) > 1:
        return any(_has_text(each) for each in members if each is not type(None))
    return kind in (str, Potential, *SCALARS) or get_origin(kind) is Literal


def _no_text(where: str) -> ConfigError:
    return ConfigError(f"{where} cannot be given as text; pass the potential in code")
