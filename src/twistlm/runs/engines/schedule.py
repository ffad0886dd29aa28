"""Who does which piece: the same for all engines.

A worker that ends in the middle of a piece (killed for want of memory, its machine gone) costs that piece alone, which
another worker is given. A piece that has cost `ATTEMPTS` workers is taken for the cause and given up; the others are
done. What a piece raises is its own result, and is not tried again: it would be raised again.
"""

import logging
import pickle
import sys
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from twistlm.core.advice import coded
from twistlm.core.errors import ConfigError, TwistError
from twistlm.core.plugins import load_file
from twistlm.core.work import Failure

logger = logging.getLogger("twistlm")

W = TypeVar("W")
R = TypeVar("R")

ATTEMPTS = 3
# Where results are wanted in order, pieces for each worker that may be ahead of the first that has not ended.
AHEAD = 4


@dataclass(frozen=True)
class Lost:
    """A worker ended in the middle of a piece; why, in words."""

    why: str


@dataclass(frozen=True)
class _Given:
    """A piece, its number, and the how-manieth worker has it."""

    number: int
    piece: bytes
    attempt: int = 1


class Crew(Protocol[W]):
    """How an engine deals with its workers."""

    def start(self) -> W:
        """A new worker."""

    def give(self, worker: W, piece: bytes) -> None:
        """Let it do a piece."""

    def wait(self, busy: Sequence[W]) -> Sequence[tuple[W, bytes | Lost]]:
        """What has become of workers that have a piece; nothing yet, if those that have none should make room."""

    def stop(self, workers: Sequence[W]) -> None:
        """End them, whatever they are doing."""


class Scheduled(Generic[W]):
    """A team made of an engine's workers. They are started as there are pieces for them.

    Args:
        crew: how to deal with them.
        jobs: so many at a time.
        dumps: makes bytes of a piece.
        once: a new worker for every piece, so that what one took is given back.
    """

    def __init__(
        self, crew: Crew[W], jobs: int, dumps: Callable[[Any], bytes] = pickle.dumps, *, once: bool = False
    ) -> None:
        self.crew, self.jobs, self.dumps, self.once = crew, jobs, dumps, once
        self.idle: list[W] = []

    def do(
        self, pieces: Iterable[Callable[[Any], R]], *, near: bool = False
    ) -> Generator[tuple[int, R | Failure], None, None]:
        """As for `twistlm.core.work.Team`."""
        source, again = enumerate(pieces), deque[_Given]()
        busy: dict[W, _Given] = {}
        taken = 0
        try:
            while True:
                while len(busy) < self.jobs:
                    first = min((each.number for each in [*busy.values(), *again]), default=taken)
                    if again:
                        given = again.popleft()
                    elif (near and taken - first >= AHEAD * self.jobs) or (following := next(source, None)) is None:
                        break
                    else:
                        given = _Given(following[0], sent(following[1], self.dumps))
                        taken += 1
                    worker = self.idle.pop() if self.idle else self.crew.start()
                    busy[worker] = given
                    self.crew.give(worker, given.piece)
                if not busy:
                    return
                answers = self.crew.wait(list(busy))
                if not answers:
                    self.close()
                for worker, answer in answers:
                    given = busy.pop(worker)
                    if not isinstance(answer, Lost):
                        self._keep(worker)
                        yield given.number, pickle.loads(answer)
                        continue
                    self.crew.stop([worker])
                    if given.attempt < ATTEMPTS:
                        logger.warning(coded("TW505", "piece %d: %s; it is tried again"), given.number + 1, answer.why)
                        again.append(replace(given, attempt=given.attempt + 1))
                    else:
                        yield given.number, Failure("Killed", f"it has cost {ATTEMPTS} workers: {answer.why}")
        finally:
            self.crew.stop(list(busy))

    def _keep(self, worker: W) -> None:
        if self.once:
            self.crew.stop([worker])
        else:
            self.idle.append(worker)

    def close(self) -> None:
        """End the workers that have nothing to do."""
        idle, self.idle = self.idle, []
        self.crew.stop(idle)


def sent(value: Any, dumps: Callable[[Any], bytes]) -> bytes:
    """What other processes are sent.

    Raises:
        ConfigError: it cannot be.
    """
    try:
        return dumps(value)
    except (TypeError, AttributeError, ValueError, RuntimeError, pickle.PicklingError) as error:
        raise ConfigError(
            f"this cannot be sent to other processes ({' '.join(str(error).split())[:200]}): name models by folder, "
            "define functions in a module, or do with --jobs 1"
        ) from error


class Worker:
    """What a worker process keeps: its context, made when the first piece comes.

    Args:
        prepare: bytes of the function that makes it.
        plugins: files to load before.
    """

    def __init__(self, prepare: bytes, plugins: Sequence[Path]) -> None:
        self.prepare, self.plugins = prepare, plugins
        self.context: Any = None
        self.is_ready = False

    def do(self, piece: bytes) -> bytes:
        """The bytes of a piece's result, or of its failure."""
        try:
            if not self.is_ready:
                for path in self.plugins:
                    load_file(path)
                self.context = pickle.loads(self.prepare)()
                self.is_ready = True
            result: Any = pickle.loads(piece)(self.context)
        except TwistError as error:
            result = Failure.of(error)
        except Exception as error:
            traceback.print_exc()
            sys.stderr.flush()
            said = " ".join(str(error).split())[:200]
            result = Failure("Bug", f"{type(error).__name__}: {said} (a bug: its traceback is above)")
        return pickle.dumps(result)
