"""Pieces of work that know nothing of each other, and who does them.

A piece is a function of a context, which is what every worker makes once and keeps: a loaded model. Who does the pieces
is an engine (`twistlm.runs.engines`); where none is named, this process does them, one after the other. A piece brings
its own stream of random numbers, so that what comes out depends neither on who did it nor on how many there are.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from twistlm.core import errors
from twistlm.core.errors import TwistError

C = TypeVar("C")
D = TypeVar("D", covariant=True)
R = TypeVar("R")


@dataclass(frozen=True)
class Failure:
    """Why a piece could not be done: the kind of error and its one-line message."""

    error: str
    message: str

    @staticmethod
    def of(error: TwistError) -> "Failure":
        """That of a deliberate error."""
        return Failure(type(error).__name__, " ".join(str(error).split()))

    def raised(self) -> TwistError:
        """The error that it was, to be raised here."""
        kind = getattr(errors, self.error, TwistError)
        return kind(self.message) if issubclass(kind, TwistError) else TwistError(self.message)


class Team(Protocol[D]):
    """Workers that have a context each."""

    def do(
        self, pieces: Iterable[Callable[[D], R]], *, near: bool = False
    ) -> Generator[tuple[int, R | Failure], None, None]:
        """Do pieces; yields the number of each, as it ends, and its result.

        They are taken from `pieces` as workers become free; with `near` none that is far ahead of the first that has
        not ended. Closing the generator leaves what is under way.
        """


class Engine(Protocol):
    """Where work is done."""

    def open(self, prepare: Callable[[], C], here: C | None = None) -> AbstractContextManager[Team[C]]:
        """Workers for one kind of work, which end with the block.

        Args:
            prepare: makes a worker's context. It and the pieces are sent to other processes.
            here: such a context that this process has, to be used where it does the pieces itself.

        Raises:
            ConfigError: they cannot be sent, or there is no room for a single worker.
        """


class InThisProcess:
    """The engine that is none: one piece after the other, without anything being sent."""

    @contextmanager
    def open(self, prepare: Callable[[], Any], here: Any = None) -> Iterator["Team[Any]"]:
        """As for `Engine`; the context is made when the first piece needs it."""
        yield Alone(here, prepare)


class Alone:
    """The team of this process: with a context that is there, or one that is made when the first piece needs it."""

    def __init__(self, context: Any = None, prepare: Callable[[], Any] = lambda: None) -> None:
        self.context, self.prepare = context, prepare

    def do(
        self, pieces: Iterable[Callable[[Any], R]], *, near: bool = False
    ) -> Generator[tuple[int, R | Failure], None, None]:
        """As for `Team`."""
        for number, piece in enumerate(pieces):
            try:
                if self.context is None:
                    self.context = self.prepare()
                result: R | Failure = piece(self.context)
            except TwistError as error:
                yield number, Failure.of(error)
            else:
                yield number, result


@dataclass(frozen=True)
class Opened:
    """The engine of a team that is there already: further work for the same workers."""

    team: Team[Any]

    @contextmanager
    def open(self, prepare: Callable[[], Any], here: Any = None) -> Iterator[Team[Any]]:
        """The team, which stays when the block ends."""
        yield self.team


def in_order(team: Team[C], pieces: Iterable[Callable[[C], R]]) -> Generator[R, None, None]:
    """Results in the order of their pieces, where each is needed.

    Raises:
        TwistError: one could not be done; those before it have been yielded.
    """
    ahead: dict[int, R | Failure] = {}
    following = 0
    with closing(team.do(pieces, near=True)) as results:
        for number, result in results:
            ahead[number] = result
            while following in ahead:
                found = ahead.pop(following)
                following += 1
                if isinstance(found, Failure):
                    raise found.raised()
                yield found
