"""Work in tasks that leave a file each, so that what is done stays done when the whole is killed."""

from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from twistlm.core.errors import TwistError
from twistlm.runs.engines import Local


class Task(Protocol):
    """Something to do, which can be sent to another process."""

    def file(self, out: Path) -> Path:
        """Where its result is in the folder `out`, once it has one."""


T = TypeVar("T", bound=Task)


def missing(tasks: Sequence[T], out: Path) -> list[T]:
    """Those without a result."""
    return [task for task in tasks if not task.file(out).exists()]


def do(function: Callable[[T], None], tasks: Sequence[T], jobs: int) -> Generator[tuple[T, str | None], None, None]:
    """Do them, `jobs` at a time; yields each in order, with why it could not be done, if it could not."""
    with Local(jobs).start(_no_context) as workers:
        yield from zip(tasks, workers.do([partial(_done, function, task) for task in tasks], None), strict=True)


def _no_context() -> None:
    """Every task loads what it needs."""


def _done(function: Callable[[T], None], task: T, context: None) -> str | None:
    try:
        function(task)
    except TwistError as error:
        return str(error)
    return None
