"""From options to results, pictures and page."""

import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from suite import curves, machine, memory, table, times
from suite.options import IMAGES, PAGE, RESULTS, Options
from suite.record import Record, load


def main(options: Options) -> Record:
    """Measure, print, and write the results, the pictures and the page."""
    console = Console(stderr=True)
    place = options.place
    record = _start(options, place)
    start = time.perf_counter()
    try:
        for done in () if options.redraw else _measure(options, record):
            console.print(f"{(time.perf_counter() - start) / 60:5.1f} min: measured {done}")
            if place is not None:
                record.save(place)
    finally:
        # Also of a run that is stopped. What was written, with its rounding, is what is shown.
        written = None if place is None else load(place)
        if place is not None and written is not None:
            record = written
            _publish(record, place)
    table.show(record)
    return record


def _publish(record: Record, place: Path) -> None:
    from suite import plots  # not before: every process that measures memory would load matplotlib

    plots.plot(record, IMAGES if place == RESULTS else place.parent)
    if place == RESULTS:
        table.write(PAGE, record)


def _start(options: Options, place: Path | None) -> Record:
    """The earlier record, to be added to; a new one if there is none, or it is of another machine.

    Raises:
        SystemExit: some groups alone were to be measured, and the others' results are of another machine.
    """
    new = Record(machine.describe(), options.quick)
    earlier = None if place is None else load(place)
    if earlier is None or options.redraw:
        return earlier or new
    differs = [name for name, value in new.machine.items() if value != earlier.machine.get(name)]
    if not differs and earlier.quick == new.quick:
        return earlier
    if options.only:
        raise SystemExit(
            f"{place} is of another machine or a quick run ({', '.join(differs) or 'quick'}), and results are never "
            "mixed: measure every group, or write to another file with --output"
        )
    return new


def _measure(options: Options, record: Record) -> Iterator[str]:
    yield from times.measure(options, record)
    yield from memory.measure(options, record)
    yield from curves.measure(options, record)
