"""Updates of every method on the bundled model, as ratios to sampling their sequences alone.

Hidden states of the sampling pass are what heads train on, so an update should cost little more. Sources are those of
the experiment `toxicity`: the proposal's draws, the base model's for what SIXO and FUDGE set against them.
"""

import os
from collections.abc import Iterator

from benchmarks.suite import limits
from benchmarks.suite.options import Options
from benchmarks.suite.record import Record, Row
from benchmarks.suite.tasks import Bench
from benchmarks.suite.timing import alternate

TWISTS = ("mlp", "backbone")
LOSSES = ("ctl", "rl", "sixo", "fudge", "dpg", "ppo")
UPDATES = tuple(f"{loss}_{twist}" for twist in TWISTS for loss in LOSSES)


def samples(update: str) -> tuple[str, ...]:
    """The tasks that sample what an update learns from."""
    loss, _, twist = update.partition("_")
    return {"sixo": (f"never_{twist}", "base"), "fudge": ("base",)}.get(loss, (f"never_{twist}",))


def measure(options: Options, record: Record) -> Iterator[str]:
    """Put the rows into `record`, precision by precision; yields what was done."""
    if "methods" not in options.groups or "stories" not in options.models:
        return
    batch = options.sizes.short
    names = list(dict.fromkeys(["generate", *(task for update in UPDATES for task in samples(update)), *UPDATES]))
    for dtype in options.dtypes:
        label, before = f"stories {dtype} {batch}", os.getloadavg()
        bench = Bench("stories", dtype, quick=options.quick)
        timings = alternate({name: bench.task(name, batch) for name in names}, options.rounds, label)
        for name, timing in timings.items():
            against = samples(name) if name in UPDATES else ("generate",)
            record.put(
                Row(
                    name=f"{name}_{batch}", model="stories", dtype=dtype, kind="update" if name in UPDATES else "time",
                    ratio=timing.median / sum(timings[other].median for other in against),
                    limit=limits.of_update(name) if name in UPDATES else None, median_s=timing.median, peak_mb=None,
                    task=name, particles=batch.particles, steps=batch.steps, runs_s=timing.seconds, ess=timing.ess,
                    limit_s=timing.limit_s,
                )
            )  # fmt: skip
        record.put_load(label, before, os.getloadavg())
        yield label
