"""Engines: where pieces of work that know nothing of each other are done. They know nothing of what the work is.

An engine (`twistlm.core.work.Engine`) is one file here. It says how a worker is started, given a piece, waited for and
stopped (`schedule.Crew`); who gets which piece, what is tried again and what is given up is written once.
"""

import inspect
from dataclasses import dataclass
from typing import Any

from twistlm.core.errors import ConfigError
from twistlm.core.registry import lookup
from twistlm.core.work import Engine


@dataclass(frozen=True)
class Share:
    """What each worker takes of the machines: cores, GPUs, and GiB of memory if it is known."""

    cpus: int = 1
    gpus: float = 0.0
    memory: float | None = None


def engine(name: str = "local", **options: Any) -> Engine:
    """An engine by name.

    Args:
        name: a registered one: "local" or "ray".
        **options: jobs, the number of workers; share, a `Share`; and for ray the cluster's address.

    Raises:
        ConfigError: there is no such engine, it takes no such option, or what it needs is not installed.
    """
    kind, given = lookup("engine", name).value, {key: value for key, value in options.items() if value is not None}
    known = inspect.signature(kind).parameters
    if unknown := [key for key in given if key not in known]:
        raise ConfigError(f"engine {name!r} takes no {', '.join(unknown)}; it takes {', '.join(known)}")
    made: Engine = kind(**given)
    return made
