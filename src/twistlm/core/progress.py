"""Progress on standard error: bars on a terminal, a line now and then in a log file."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from twistlm.core.processes import is_first
from twistlm.core.terminal import console

Report = Callable[[int, str], None]
"""Called with the amount completed so far and a short text."""

# Between lines where nobody watches: seldom enough to read, often enough to see that it goes on.
LINE_SECONDS = 30.0


@contextmanager
def bar(description: str, total: int) -> Iterator[Report]:
    """Yields the function that says how far the work is. TWISTLM_PROGRESS=0 silences it, and all processes but one."""
    if os.environ.get("TWISTLM_PROGRESS", "1") == "0" or not is_first():
        yield _nothing
    elif sys.stderr.isatty():
        with _bar(description, total) as report:
            yield report
    else:
        yield _lines(description, total)


@contextmanager
def _bar(description: str, total: int) -> Iterator[Report]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=total, note="")

        def report(completed: int, note: str = "") -> None:
            progress.update(task, completed=completed, note=note)

        yield report


def _nothing(completed: int, note: str = "") -> None:
    """Says nothing."""


def _lines(description: str, total: int) -> Report:
    started = said = time.monotonic()

    def report(completed: int, note: str = "") -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= LINE_SECONDS:
            said = now
            more = f", {note}" if note else ""
            print(f"{description}: {completed:,} of {total:,} after {now - started:.0f} s{more}", file=sys.stderr)

    return report
