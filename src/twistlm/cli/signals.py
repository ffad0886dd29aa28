"""How a command ends when it is told to: one line, and the code that shells expect."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(BaseException):
    """SIGTERM; like KeyboardInterrupt no `Exception`, so that nothing on the way takes it for an error."""


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises `Terminated`, so that what is open is closed; only the main thread can arrange it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminate(number: int, frame: FrameType | None) -> None:
    # A second one while the first is dealt with would only interrupt that.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated
