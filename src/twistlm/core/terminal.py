"""What is printed: text as it is, in any encoding, to whoever still reads it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from rich.console import Console


def console(*, stderr: bool = False) -> Console:
    """The only kind there is: a text, a path or a prompt is never markup, so "[red]" is five characters."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


@contextmanager
def outlets() -> Iterator[None]:
    """Standard output and error that no reader can break.

    A symbol that the encoding does not have is printed as "?". Once a pipe is closed (`| head -1`), what would go there
    is dropped, and the work goes on: its results are files.
    """
    standard = sys.stdout, sys.stderr
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    sys.stdout, sys.stderr = cast(TextIO, _Outlet(sys.stdout)), cast(TextIO, _Outlet(sys.stderr))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = standard


def hush() -> None:
    """Send the rest of standard output nowhere: it cannot be written, and Python would try again at the end."""
    _to_nowhere(sys.stdout)


class _Outlet:
    """A stream that says no more once nobody reads it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            _to_nowhere(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            _to_nowhere(self._stream)


def _to_nowhere(stream: TextIO) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
