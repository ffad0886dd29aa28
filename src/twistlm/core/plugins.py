"""Parts that others bring: in a distribution that is installed, or in a file that is named::

    [project.entry-points."twistlm.plugins"]
    mine = "my_package.losses"

Importing that module registers what it defines (`twistlm.core.registry`). Distributions are loaded, once, when a part
is asked for that is not among twistlm's own, or when all are listed. A file runs its code, so it is loaded only when
somebody names it.
"""

import hashlib
import sys
import traceback
from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from twistlm.core.errors import ConfigError

GROUP = "twistlm.plugins"
# Modules made of files are below this name, so that none takes the place of another package's.
PREFIX = "twistlm_plugins"

_BEGUN: set[EntryPoint] = set()
_FILES: dict[Path, str] = {}


def load_installed() -> None:
    """Import what installed distributions have registered in the group.

    Raises:
        ConfigError: one cannot be imported; the message names its distribution.
    """
    for entry in _installed():
        # Also one that is being imported just now and looks something up.
        if entry in _BEGUN:
            continue
        _BEGUN.add(entry)
        try:
            entry.load()
        except Exception as error:
            _BEGUN.discard(entry)
            name = _distribution(entry)
            raise ConfigError(
                f"plugin {entry.name!r} of the distribution {name!r} cannot be loaded ({_said(error, None)}): upgrade "
                f"it, or remove it with `pip uninstall {name}`"
            ) from error


def load_file(path: Path) -> None:
    """Run a Python file that registers parts; nothing happens if that has been done.

    Raises:
        ConfigError: there is no such file, it raises, or another one of the same name has been loaded.
    """
    place = Path(path).absolute()
    name = f"{PREFIX}.{place.stem}"
    if place in _FILES:
        return
    if name in sys.modules:
        other = getattr(sys.modules[name], "__file__", "another file")
        raise ConfigError(f"plugin {path} has the name of {other}, which is loaded already: rename one of them")
    if not place.is_file():
        raise ConfigError(f"plugin {path} is no file; give the path of a Python file")
    module = ModuleType(name)
    module.__file__ = str(place)
    sys.modules[name] = module
    try:
        # Not by an import: that would leave compiled files beside it, and might run an older one.
        exec(compile(place.read_bytes(), str(place), "exec"), vars(module))
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(
            f"plugin {path} cannot be loaded ({_said(error, place)}): mend it, or leave it out"
        ) from error
    _FILES[place] = name


def files() -> tuple[Path, ...]:
    """The files that have been loaded: what a process that works for this one has to load too."""
    return tuple(_FILES)


def distributions() -> dict[str, str]:
    """Versions of the distributions that have been loaded, by name."""
    return {_distribution(entry): entry.dist.version for entry in _BEGUN if entry.dist is not None}


def is_own(module: str) -> bool:
    """Whether a module is part of twistlm."""
    return module.split(".")[0] == "twistlm"


def hashes(parts: Iterable[tuple[str, object]]) -> dict[str, str]:
    """SHA-256 of the file that defines each of these named parts, without twistlm's own.

    What is typed in or belongs to the running script has none: that changes for reasons of its own.
    """
    hashed = {}
    for name, part in parts:
        module = str(getattr(part, "__module__", "__main__"))
        file = getattr(sys.modules.get(module), "__file__", None)
        if file is not None and module != "__main__" and not is_own(module):
            hashed[name] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return hashed


@cache
def _installed() -> tuple[EntryPoint, ...]:
    # Looking through all that is installed takes a while.
    return tuple(entry_points(group=GROUP))


def _distribution(entry: EntryPoint) -> str:
    return entry.module.split(".")[0] if entry.dist is None else entry.dist.name


def _said(error: Exception, place: Path | None) -> str:
    """The error in one line, with the line of the file that it comes from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(place)]
    if isinstance(error, SyntaxError) and error.filename == str(place):
        lines.append(error.lineno)
    where = f", line {lines[-1]}" if lines else ""
    message = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return f"{type(error).__name__}: {message}{where}"
