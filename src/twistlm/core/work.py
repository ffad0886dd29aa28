"""Independent pieces of work, and the engine that does them.

A piece is a function of a worker's context, which every worker makes once and keeps: a loaded model. It brings its own
stream of random numbers, so results depend neither on who does it nor on the number of workers.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

C = TypeVar("C")
R = TypeVar("R")


class Engine:
    """Does pieces of work: in this process, unless it is one of `twistlm.runs.engines`, which have workers.

    Attributes:
        has_workers: whether pieces are done in other processes.
    """

    has_workers = False

    @contextmanager
    def start(self, prepare: Callable[[], Any]) -> Iterator["Engine"]:
        """The engine with workers for one kind of work, which end with the block. Started again, it stays as it is.

        Args:
            prepare: makes a worker's context. It and the pieces are sent to other processes.

        Raises:
            ConfigError: they cannot be sent.
        """
        yield self

    def do(self, pieces: Iterable[Callable[[C], R]], here: C) -> Generator[R, None, None]:
        """Results in the order of their pieces, which are taken as they are needed; raises what a piece raises.

        Args:
            pieces: what to do.
            here: context for what this process does itself.

        Raises:
            ProcessError: a worker has ended in the middle of a piece.
        """
        for piece in pieces:
            yield piece(here)


HERE = Engine()
