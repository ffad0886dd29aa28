"""What is printed: text as it is, in any encoding, to whoever still reads it. No text tells the terminal what to do."""

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

# All but the tab and the ends of lines; with them ESC, which begins what a terminal obeys.
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
# All but those and colours, which command lines' help has.
CONTROLS_BUT_COLOURS = re.compile(r"(?!\x1b\[[0-9;]*m)[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """A text without control characters: names and samples come from files, which may be anybody's."""
    return CONTROLS.sub("", text)


class _Console(Console):
    """Styles and moves the cursor itself; what it is given to print does neither."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(plain(segment.text), segment.style)


def console(*, stderr: bool = False) -> Console:
    """The only kind there is: a text, a path or a prompt is never markup, so "[red]" is five characters."""
    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, _Outlet):
        stream = cast(TextIO, stream.trusting)
    return _Console(file=stream, stderr=stderr, markup=False, emoji=False, highlight=False)


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
    """A stream that says no more once nobody reads it, and drops control characters unless it trusts who writes."""

    def __init__(self, stream: TextIO, trusts: bool = False) -> None:
        self._stream, self._trusts = stream, trusts

    @property
    def trusting(self) -> "_Outlet":
        """The same for a console, which moves the cursor."""
        return _Outlet(self._stream, trusts=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if not self._trusts:
            text = (CONTROLS_BUT_COLOURS if self._stream.isatty() else CONTROLS).sub("", text)
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
