"""From options to results, pictures and page."""

import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from benchmarks.suite import curves, machine, memory, methods, prompts, table, times
from benchmarks.suite.options import OF_MODEL, PAGE, RESULTS, Options
from benchmarks.suite.record import Record, load


def main(options: Options) -> Record:
    """Measure, print, and write the results, and the page or pictures."""
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
    if place == RESULTS:
        # The site draws its pictures from the results while it is built.
        table.write(PAGE, record)
        return
    from benchmarks.suite import plots  # not before: every process that measures memory would load matplotlib

    plots.plot(record, place.parent)


def _start(options: Options, place: Path | None) -> Record:
    """The earlier record, to be added to, without models that were measured on another machine and now all over again.

    Raises:
        SystemExit: only a part of a model's groups was to be measured, and its other results are of another machine.
    """
    here = machine.describe()
    earlier = None if place is None else load(place)
    if options.redraw and earlier is not None:
        return earlier
    if earlier is None or earlier.quick != options.quick:
        earlier = Record({}, options.quick)
    for model in options.measured:
        there = earlier.machines.setdefault(model, here)
        differs = [name for name, value in here.items() if value != there.get(name)]
        if differs and set(OF_MODEL[model]) - set(options.groups):
            raise SystemExit(
                f"{place} holds results of {model} from another machine ({', '.join(differs)}), and a model's results "
                "are never mixed: measure all of its groups, or write to another file with --output"
            )
        if differs:
            earlier.forget(model)
            earlier.machines[model] = here
    return earlier


def _measure(options: Options, record: Record) -> Iterator[str]:
    yield from times.measure(options, record)
    yield from methods.measure(options, record)
    yield from prompts.measure(options, record)
    yield from memory.measure(options, record)
    yield from curves.measure(options, record)
