"""One registry of every interchangeable part.

A part registers itself with a decorator where it is defined; `available` and `lookup` import every module of the
package that holds that kind, so a new part is one new file and nothing else is edited. Parts of others come from
plugins (`twistlm.core.plugins`). The command line's choices, `twistlm list` and the conformance tests all read from
here.
"""

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from twistlm.core.errors import ConfigError
from twistlm.core.plugins import load_installed

T = TypeVar("T")

# Where the parts of each kind live: modules or packages, imported on first use.
HOMES = {
    "resampler": "twistlm.sampling.resampling",
    "proposal": "twistlm.sampling.proposals",
    "twist": "twistlm.twists",
    "loss": "twistlm.training.losses",
    "source": "twistlm.training.sources",
    "optimiser": "twistlm.training.optimisers",
    "potential": "twistlm.potentials",
    "model": "twistlm.models",
    "classifier": "twistlm.models.bundled",
    "experiment": "twistlm.runs.experiments",
    "engine": "twistlm.runs.engines",
    "report": "twistlm.report.page",
}


@dataclass(frozen=True)
class Entry:
    """A registered part: its object, the first line of its docstring, and what else its decorator recorded."""

    name: str
    value: Any
    summary: str
    options: dict[str, Any] = field(default_factory=dict)


_ENTRIES: dict[str, dict[str, Entry]] = {kind: {} for kind in HOMES}


def register(kind: str, name: str, *, summary: str | None = None, **options: Any) -> Callable[[T], T]:
    """Decorator: make the object available as `name` among the parts of `kind`.

    Its summary is the first line of `summary`, or of its own docstring. What is defined anew by the same module (a cell
    of a notebook, run again) takes the place of what was there.
    """

    def add(value: T) -> T:
        known = _ENTRIES[kind].get(name)
        if known is not None and _definition(known.value) != _definition(value):
            places = " and in ".join(_definition(each)[0] for each in (known.value, value))
            raise ConfigError(f"{kind} {name!r} is registered twice, in {places}; choose another name")
        line = (summary or getattr(value, "__doc__", None) or "").strip().split("\n")[0]
        _ENTRIES[kind][name] = Entry(name, value, line, options)
        return value

    return add


def available(kind: str) -> dict[str, Entry]:
    """Every registered part of `kind` by name, after importing the modules that define them, those of plugins too.

    Raises:
        ConfigError: an installed plugin cannot be loaded.
    """
    _import(kind)
    load_installed()
    return dict(sorted(_ENTRIES[kind].items()))


def lookup(kind: str, name: str) -> Entry:
    """The part of `kind` called `name`. One of twistlm's own is found without loading anybody else's.

    Raises:
        ConfigError: there is none; the message offers the closest names.
    """
    _import(kind)
    if name in _ENTRIES[kind]:
        return _ENTRIES[kind][name]
    entries = available(kind)
    if name in entries:
        return entries[name]
    close = difflib.get_close_matches(name, entries, n=1)
    hint = f"; did you mean {close[0]!r}" if close else ""
    raise ConfigError(
        f"unknown {kind} {name!r}{hint}. Choose one of: {', '.join(entries)}; or load the plugin that has it: "
        "install it, or name its file with --plugin"
    )


@functools.cache
def _import(kind: str) -> None:
    """Import the modules that define twistlm's own parts of this kind, once."""
    home = importlib.import_module(HOMES[kind])
    for module in pkgutil.iter_modules(getattr(home, "__path__", ())):
        importlib.import_module(f"{HOMES[kind]}.{module.name}")


def _definition(value: object) -> tuple[str, object]:
    """Module and name of a function or class; of any other object its own identity."""
    return getattr(value, "__module__", "?"), getattr(value, "__qualname__", id(value))
