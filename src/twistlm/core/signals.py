"""Being told to end: Ctrl-C and SIGTERM become exceptions, which wait for a moment in which nothing is half done.

Whoever owns the process (the command line, a worker of an engine) installs the handler by `terminable`. What computes
says by `held` what should not be cut in two, and catches `STOPS` to save what is whole. Elsewhere (a notebook, a
thread) nobody has installed it, and both do nothing.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(BaseException):
    """SIGTERM; like KeyboardInterrupt no `Exception`, so that nothing on the way takes it for an error."""


STOPS: tuple[type[BaseException], ...] = (KeyboardInterrupt, Terminated)
"""What a process that is told to end raises."""

# A process group and its leader are often told both: what comes so soon after the first (seconds) is the same order.
SAME = 0.5


# What is raised in a `__del__` (the collector runs thousands of them in one go) is swallowed: the signal comes again
# after so many seconds.
SOON = 0.01


def _in_finaliser(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


class _Handler:
    """Raises at once, or where something is held when that has ended; a second signal does not wait.

    `once`: there is no second one; whoever sent the first decides what comes then.
    """

    def __init__(self, once: bool) -> None:
        self.once, self.depth = once, 0
        self._first: float | None = None
        self._waiting: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if _in_finaliser(frame):
            again = threading.Timer(SOON, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
            return
        now = time.monotonic()
        if self._first is not None and (self.once or now - self._first < SAME):
            return
        held = self.depth > 0 and self._first is None
        self._first = now if self._first is None else self._first
        if held:
            self._waiting = number
        else:
            self._stop(number)

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Let a first signal wait until the end."""
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1
            if self.depth == 0 and self._waiting is not None:
                self._stop(self._waiting)

    def _stop(self, number: int) -> None:
        self._waiting = None
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated


@contextmanager
def terminable(*numbers: signal.Signals, once: bool = False) -> Iterator[None]:
    """The signals raise KeyboardInterrupt and `Terminated`; only the main thread can arrange it.

    Args:
        *numbers: SIGINT, SIGTERM or both.
        once: only the first counts.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, handler = {number: signal.getsignal(number) for number in numbers}, _Handler(once)
    for number in numbers:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def held() -> Iterator[None]:
    """What should not be cut in two: a first signal takes effect at its end, a second one at once."""
    handler = signal.getsignal(signal.SIGTERM)
    if isinstance(handler, _Handler) and threading.current_thread() is threading.main_thread():
        with handler.holding():
            yield
    else:
        yield


@contextmanager
def as_worker() -> Iterator[None]:
    """For a process whose parent decides when it ends: SIGTERM lets it save what is whole, then it dies of it.

    Ctrl-C, which reaches every process of a terminal, is the parent's to hear.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with terminable(signal.SIGTERM, once=True):
            yield
    except Terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
