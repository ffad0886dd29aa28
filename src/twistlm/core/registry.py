"""One registry of every interchangeable part.

A part registers itself with a decorator where it is defined; `available` and `lookup` import every module of the
package that holds that kind, so a new part is one new file and nothing else is edited. The command line's choices,
`twistlm list` and the conformance tests all read from here.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from twistlm.core.errors import ConfigError

T = TypeVar("T")

# Where the parts of each kind live: modules or packages, imported on first use.
HOMES = {
    "resampler": "twistlm.sampling.resampling",
    "proposal": "twistlm.sampling.proposals",
    "twist": "twistlm.twists",
    "loss": "twistlm.training.losses",
    "source": "twistlm.training.sources",
    "potential": "twistlm.potentials",
    "model": "twistlm.models",
    "classifier": "twistlm.models.bundled",
    "experiment": "twistlm.runs.experiments",
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

    Its summary is the first line of `summary`, or of its own docstring.
    """

    def add(value: T) -> T:
        if name in _ENTRIES[kind]:
            raise ConfigError(f"{kind} {name!r} is registered twice; choose another name")
        line = (summary or getattr(value, "__doc__", None) or "").strip().split("\n")[0]
        _ENTRIES[kind][name] = Entry(name, value, line, options)
        return value

    return add


def available(kind: str) -> dict[str, Entry]:
    """Every registered part of `kind` by name, after importing the modules that define them."""
    home = importlib.import_module(HOMES[kind])
    for module in pkgutil.iter_modules(getattr(home, "__path__", ())):
        importlib.import_module(f"{HOMES[kind]}.{module.name}")
    return dict(sorted(_ENTRIES[kind].items()))


def lookup(kind: str, name: str) -> Entry:
    """The part of `kind` called `name`.

    Raises:
        ConfigError: there is none; the message offers the closest names.
    """
    entries = available(kind)
    if name in entries:
        return entries[name]
    close = difflib.get_close_matches(name, entries, n=1)
    hint = f"; did you mean {close[0]!r}" if close else ""
    raise ConfigError(f"unknown {kind} {name!r}{hint}. Choose one of: {', '.join(entries)}")
