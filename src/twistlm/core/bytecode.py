"""What a function reads and imports, by its compiled code, and which modules are a user's.

A variable that it assigns itself (a model that it loads at first use), or a container that it writes into (what it has
found so far), is nothing that it reads.
"""

import dis
import importlib.util
import sys
import sysconfig
import types
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from itertools import pairwise
from operator import itemgetter
from typing import Any

# What a function may fill as it is called, and by which methods.
CONTAINERS = (dict, list, set, bytearray, deque)
WRITERS = {"add", "append", "appendleft", "extend", "insert", "setdefault", "update"}


def globals_of(function: types.FunctionType) -> dict[str, Any]:
    """What it reads by name; names that are attributes of something else do no harm."""
    return {n: function.__globals__[n] for n in _names(function.__code__) if n in function.__globals__}


def imported(function: types.FunctionType) -> dict[str, Any]:
    """Modules of the user's that it imports when it is called."""
    found: dict[str, Any] = {}
    for code in _nested(function.__code__):
        steps = list(dis.get_instructions(code))
        for at, step in enumerate(steps):
            if step.opname != "IMPORT_NAME":
                continue
            name, level, those = step.argval, steps[at - 2].argval, steps[at - 1].argval
            if level or not _would_be_installed(name.split(".")[0]):
                # One that is not here may be done without; what else there is to say, calling the function says.
                with suppress(Exception):
                    found[f"import {'.' * level}{name}"] = __import__(name, function.__globals__, None, those, level)
    return found


def reads(code: types.CodeType, found: Mapping[str, Any]) -> dict[str, Any]:
    """Which of these variables it reads; of a user's module whatever has a name in the code: `mine.scores.score`."""
    named, assigned, written = sorted(_names(code)), _assigned(code), _written(code)
    read, followed = dict[str, Any](), set[int]()
    todo = deque((name, each) for name, each in sorted(found.items(), key=itemgetter(0)) if name not in assigned)
    while todo:
        name, each = todo.popleft()
        if name in written and isinstance(each, CONTAINERS):
            continue
        inner = []
        if isinstance(each, types.ModuleType) and not installed(each.__name__):
            if id(each) in followed:
                continue
            followed.add(id(each))
            inner = [(f"{name}.{n}", getattr(each, n)) for n in named if hasattr(each, n)]
            todo += inner
        if not inner:
            read[name] = each
    return read


def _nested(code: types.CodeType) -> list[types.CodeType]:
    """The code with that of all functions in it."""
    inner = [each for each in code.co_consts if isinstance(each, types.CodeType)]
    return [code, *[each for part in inner for each in _nested(part)]]


def _names(code: types.CodeType) -> set[str]:
    return {name for each in _nested(code) for name in each.co_names}


def _assigned(code: types.CodeType) -> set[str]:
    """Globals and variables of enclosing functions that it assigns."""
    free = set(code.co_freevars)
    return {
        step.argval
        for each in _nested(code)
        for step in dis.get_instructions(each)
        if step.opname == "STORE_GLOBAL" or (step.opname == "STORE_DEREF" and step.argval in free)
    }


def _written(code: types.CodeType) -> set[str]:
    """Globals and variables of enclosing functions that it writes into: `KNOWN[text] = …`, `KNOWN.append(…)`."""
    found = set()
    for each in _nested(code):
        steps = list(dis.get_instructions(each))
        # Where `KNOWN[text]` begins, which is where `KNOWN` does.
        places = {_place(step) for step in steps if step.opname == "STORE_SUBSCR"} - {None}
        for step, following in pairwise(steps):
            if step.opname != "LOAD_GLOBAL" and not (step.opname == "LOAD_DEREF" and step.argval in each.co_freevars):
                continue
            of_it = following.argval if following.opname in ("LOAD_ATTR", "LOAD_METHOD") else None
            if of_it in WRITERS or (of_it is None and _place(step) in places):
                found.add(step.argval)
    return found


def _place(step: dis.Instruction) -> tuple[int, int] | None:
    at = step.positions
    return None if at is None or at.lineno is None or at.col_offset is None else (at.lineno, at.col_offset)


@lru_cache
def installed(module: str) -> bool:
    """Whether a module belongs to Python, to an installed package or to twistlm."""
    return _belongs(module, getattr(sys.modules.get(module), "__file__", None))


def _would_be_installed(top: str) -> bool:
    """The same of one outside packages, which need not have been imported yet."""
    if top in sys.modules:
        return installed(top)
    spec = importlib.util.find_spec(top)
    return _belongs(top, None if spec is None else spec.origin)


def _belongs(module: str, file: str | None) -> bool:
    top = module.split(".")[0]
    if top in sys.stdlib_module_names or top == "twistlm":
        return True
    places = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
    return file is not None and file.startswith(places)
