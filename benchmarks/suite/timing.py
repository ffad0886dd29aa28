"""Tasks taking turns in one process."""

import gc
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from benchmarks.suite import arithmetic
from benchmarks.suite.tasks import Task
from twistlm.core.progress import bar


@dataclass(frozen=True)
class Timing:
    """Seconds of each run of a task, in the order of the rounds, and the mean ESS / N of the last.

    `limit_s`: what its matrix products alone would take (`arithmetic`), if they were counted.
    """

    seconds: tuple[float, ...]
    ess: float | None
    limit_s: float | None = None

    @property
    def median(self) -> float:
        """Median seconds."""
        return median(self.seconds)

    def of_part(self, parts: int) -> "Timing":
        """The whole's, where this is the timing of one of so many equal parts."""
        limit_s = None if self.limit_s is None else parts * self.limit_s
        return Timing(tuple(parts * each for each in self.seconds), self.ess, limit_s)


def alternate(tasks: Mapping[str, Task], rounds: int, label: str, *, count: bool = True) -> dict[str, Timing]:
    """Run every task `rounds` times, after a warm-up each; every other round in reverse, against drift.

    To `count` operations, a whole run of the task is its warm-up.
    """
    counters = {name: arithmetic.Counter() for name in tasks}
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    ess: dict[str, float | None] = {}
    with bar(label, len(tasks) * (1 + rounds)) as report, _no_other_bars():
        done = 0
        for turn in range(1 + rounds):
            gc.collect()
            for name in list(tasks) if turn % 2 == 0 else list(tasks)[::-1]:
                report(done, name if turn else f"{name} (warm-up)")
                if turn == 0 and count:
                    with counters[name]:
                        tasks[name].run()
                elif turn == 0:
                    tasks[name].warm_up()
                else:
                    start = time.perf_counter()
                    ess[name] = tasks[name].run()
                    seconds[name].append(time.perf_counter() - start)
                done += 1
            if turn == 0:
                rates = arithmetic.rates(dtype for counter in counters.values() for dtype in counter.operations)
    limits = {name: arithmetic.limit(counters[name].operations, rates) if count else None for name in tasks}
    return {name: Timing(tuple(seconds[name]), ess[name], limits[name]) for name in tasks}


@contextmanager
def _no_other_bars() -> Iterator[None]:
    before = os.environ.get("TWISTLM_PROGRESS")
    os.environ["TWISTLM_PROGRESS"] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TWISTLM_PROGRESS"]
        else:
            os.environ["TWISTLM_PROGRESS"] = before
