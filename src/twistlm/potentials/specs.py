"""Potentials as JSON, for run folders: the registered name and the constructor's arguments."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np

from twistlm.core.errors import ConfigError
from twistlm.core.registry import available, lookup
from twistlm.potentials.protocol import Potential

Trust = bool | Sequence[str]
"""Functions that a description may import and run: those of these names ("module:qualname"); True: any it names."""


def spec(potential: Potential) -> dict[str, Any]:
    """The potential as JSON values, nested where arguments are potentials; `from_spec` reads it back.

    A function becomes `{"import": "module:qualname"}`.

    Raises:
        ConfigError: the class is not a registered dataclass, or an argument has no JSON form: a lambda, a
            local function, one defined in `__main__`, a model that is already loaded.
    """
    names = [name for name, entry in available("potential").items() if entry.value is type(potential)]
    if not names or not dataclasses.is_dataclass(potential):
        raise ConfigError(
            f"{type(potential).__name__} cannot be written to a run folder: "
            'make it a dataclass and add @register("potential", "a-name")'
        )
    fields = {f.name: getattr(potential, f.name) for f in dataclasses.fields(potential) if f.init}
    return {"name": names[0], **{name: _to_json(value) for name, value in fields.items()}}


def from_spec(fields: Mapping[str, Any], trust_functions: Trust = ()) -> Potential:
    """The potential that `spec` described.

    Args:
        fields: the description, which may come from anywhere.
        trust_functions: names of functions ("module:qualname") that it may import, and run when the potential is
            evaluated; no other is imported. True trusts whatever it names, so only descriptions from whom one trusts.

    Raises:
        ConfigError: the name is unknown, an argument does not fit, or a function is not trusted or cannot be imported.
    """
    if not isinstance(fields.get("name"), str):
        raise ConfigError(f"the description of a potential needs a 'name': {dict(fields)}")
    if not isinstance(fields.get("model", ""), str):
        raise ConfigError(f"potential {fields['name']!r}: model must be a name, not {fields['model']!r}")
    cls = lookup("potential", fields["name"]).value
    read = partial(_from_json, trust_functions)
    known = {f.name for f in dataclasses.fields(cls) if f.init}
    arguments = {name: read(value) for name, value in _translated(fields, known).items() if name != "name"}
    if unknown := arguments.keys() - known:
        raise ConfigError(
            f"potential {fields['name']!r} has no {', '.join(sorted(unknown))}; it takes {', '.join(sorted(known))}"
        )
    try:
        return cast(Potential, cls(**arguments))
    except ConfigError:
        raise
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ConfigError(f"potential {fields['name']!r}: {error}") from error


def _translated(fields: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """The description in today's words: before chats, `include_prompt` said what `of` says."""
    now = dict(fields)
    if "of" in known - now.keys() and isinstance(now.get("include_prompt"), bool):
        now["of"] = None if now.pop("include_prompt") else "continuation"
    return now


def names_in(fields: Mapping[str, Any]) -> set[str]:
    """The registered potentials that a description names, those among its arguments included."""
    nested = [item for value in fields.values() for item in (value if isinstance(value, list) else [value])]
    inner = [names_in(item) for item in nested if isinstance(item, Mapping) and "name" in item]
    return {fields["name"]}.union(*inner)


def _to_json(value: Any) -> Any:
    if isinstance(value, Potential):
        return spec(value)
    if isinstance(value, (list, tuple)):
        return [_to_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if hasattr(value, "__qualname__"):
        path = f"{value.__module__}:{value.__qualname__}"
        if value.__module__ != "__main__" and "<" not in value.__qualname__ and _import(path) is value:
            return {"import": path}
        raise ConfigError(
            f"the function {value.__qualname__} cannot be found again from a run folder (a lambda, a local "
            "function or one in __main__): define it at the top of a module, or pass the potential in code"
        )
    raise ConfigError(f"{type(value).__name__} has no JSON form: pass the potential in code")


def _from_json(trusted: Trust, value: Any) -> Any:
    if isinstance(value, Mapping):
        return _trusted(trusted, value["import"]) if "import" in value else from_spec(value, trusted)
    if isinstance(value, list):
        return tuple(_from_json(trusted, item) for item in value)
    return value


def _trusted(trusted: Trust, path: Any) -> Callable[..., Any]:
    """The function at "module:qualname", if the user trusts it.

    Raises:
        ConfigError: he does not, or there is none.
    """
    # A name by itself is one name, and no sequence of letters in which others might be found.
    names = [trusted] if isinstance(trusted, bool | str) else trusted
    if True not in names and path not in names:
        raise ConfigError(
            f"the potential is a function, {path!r}, which opening it would import and run: if you trust it, say so "
            "by name, with --trust-function or Run.load(…, trust_functions=…); in Python trust_functions=True trusts "
            "whatever it names"
        )
    if not isinstance(path, str):
        raise ConfigError(f"the potential's function must be a name, 'module:function', not {path!r}")
    return _import(path)


def _import(path: str) -> Callable[..., Any]:
    """The function at "module:qualname".

    Raises:
        ConfigError: there is none.
    """
    module, _, qualname = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in qualname.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the potential's function {path!r} cannot be imported ({error}): put its folder on PYTHONPATH "
            "(PYTHONPATH=. is this one), install its module, or pass the potential in code"
        ) from error
    return cast("Callable[..., Any]", found)
