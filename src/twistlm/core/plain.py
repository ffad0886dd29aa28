"""Python's own numbers instead of numpy's: they compare, print, identify a target and become JSON in one way only."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """A value with Python's numbers for numpy's, and tuples for arrays; inside lists, tuples and dicts, too."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return tuple(plain(each) for each in value) if value.ndim else plain(value.item())
    if type(value) in (list, tuple):
        return type(value)(plain(each) for each in value)
    if type(value) is dict:
        return {plain(key): plain(each) for key, each in value.items()}
    return value


def several(value: float | Iterable[float]) -> tuple[Any, ...]:
    """One number, or any number of them, as a tuple of Python's."""
    found = plain(value)
    return (found,) if isinstance(found, int | float) else tuple(plain(each) for each in found)


def make_plain(settings: Any) -> None:
    """Make the fields of a dataclass plain, before they are checked."""
    for field in dataclasses.fields(settings):
        if field.init:
            object.__setattr__(settings, field.name, plain(getattr(settings, field.name)))
