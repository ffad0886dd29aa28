"""Engines: how pieces of work that know nothing of each other are executed. They know nothing of what the work is.

An engine is a function of a picklable function, its tasks and how many to do at a time; it yields every task as it
ends, with what went wrong (a `Failure`) or None. One file each.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """Why a task could not be done: the kind of error and its one-line message."""

    error: str
    message: str
