"""Times of whole tasks, as ratios to `generate` of the same batch, and of resampling, as a ratio to none."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from benchmarks.suite import limits
from benchmarks.suite.options import Batch, Options
from benchmarks.suite.record import Record, Row
from benchmarks.suite.tasks import Bench
from benchmarks.suite.timing import Timing, alternate

# Every head, and a transformer of its own.
HEADS = ("mlp", "tied", "low_rank")
SMC = tuple(f"smc_{twist}" for twist in HEADS)
UPDATES = tuple(f"{loss}_{twist}" for twist in HEADS for loss in ("ctl", "dpg"))
RESAMPLING = ("smc_mlp", "never_mlp")


@dataclass(frozen=True)
class Case:
    """Tasks that take turns with one `generate`: the batch's name in `Sizes`, and by group the tasks."""

    model: str
    batch: str
    groups: dict[str, tuple[str, ...]]

    def tasks(self, chosen: tuple[str, ...]) -> list[str]:
        """The tasks of the chosen groups; the baseline first, unless resampling alone is asked for."""
        groups = [group for group in self.groups if group in chosen]
        names = ["generate"] if set(groups) - {"resampling"} else []
        return list(dict.fromkeys([*names, *(name for group in groups for name in self.groups[group])]))


CASES = (
    Case(
        "gpt2", "short",
        {"sampling": ("base", *SMC, "smc_backbone"), "training": UPDATES, "resampling": RESAMPLING},
    ),
    Case("gpt2", "long", {"long": SMC, "resampling": RESAMPLING}),
    Case("gpt2", "large", {"large": ("smc_mlp",)}),
    Case("gpt2", "certificate", {"certificate": ("certificate",)}),
    Case(
        "smollm2", "short",
        {"sampling": ("base", *SMC, "smc_backbone"), "training": ("ctl_mlp", "dpg_mlp"), "resampling": ()},
    ),
)  # fmt: skip


def measure(options: Options, record: Record) -> Iterator[str]:
    """Put every row of the chosen groups into `record`, case by case; yields what was done."""
    for case in CASES:
        names = case.tasks(options.groups)
        if case.model not in options.models or not names:
            continue
        batch: Batch = getattr(options.sizes, case.batch)
        for dtype in options.dtypes:
            label = f"{case.model} {dtype} {batch}"
            before = os.getloadavg()
            bench = Bench(case.model, dtype, quick=options.quick)
            timings = alternate({name: bench.task(name, batch) for name in names}, options.rounds, label)
            record.put(*_rows(case, batch, dtype, timings))
            record.put_load(label, before, os.getloadavg())
            yield label


def _rows(case: Case, batch: Batch, dtype: str, timings: dict[str, Timing]) -> Iterator[Row]:
    for task, timing in timings.items():
        if "generate" in timings and not task.startswith("never"):
            limit = limits.of_time(task, case.batch, dtype)
            yield _row(task, case.model, dtype, "time", batch, timing, timings["generate"], limit)
    if "never_mlp" in timings:
        yield _row(
            "resampling", case.model, dtype, "scaling", batch, timings["smc_mlp"], timings["never_mlp"], limits.FLAT
        )


def _row(
    task: str, model: str, dtype: str, kind: str, batch: Batch, timing: Timing, other: Timing, limit: float | None
) -> Row:
    return Row(
        name=f"{task}_{batch}", model=model, dtype=dtype, kind=kind, ratio=timing.median / median(other.seconds),
        limit=limit, median_s=timing.median, peak_mb=None, task=task, particles=batch.particles, steps=batch.steps,
        runs_s=timing.seconds, ess=timing.ess, limit_s=timing.limit_s,
    )  # fmt: skip
