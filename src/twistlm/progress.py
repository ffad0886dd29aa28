"""Progress bars on standard error, for anything over two seconds; silent when nobody watches."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Report = Callable[[int, str], None]
"""Called with the amount completed so far and a short text."""


@contextmanager
def bar(description: str, total: int) -> Iterator[Report]:
    """A progress bar; yields the function that moves it. Shown on a terminal only (TWISTLM_PROGRESS=0 hides it)."""
    visible = sys.stderr.isatty() and os.environ.get("TWISTLM_PROGRESS", "1") != "0"
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), disable=not visible, transient=True) as progress:
        task = progress.add_task(description, total=total, note="")

        def report(completed: int, note: str = "") -> None:
            progress.update(task, completed=completed, note=note)

        yield report
