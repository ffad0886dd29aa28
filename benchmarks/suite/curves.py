"""Times against N, T and V and memory against N: ours beside `generate`'s."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median

from benchmarks.suite import limits
from benchmarks.suite.attention import split
from benchmarks.suite.memory import Job, Processes
from benchmarks.suite.options import Batch, Options, Sizes
from benchmarks.suite.record import Curve, Record, Row
from benchmarks.suite.tasks import Bench, Task
from benchmarks.suite.timing import Timing, alternate
from twistlm.core.progress import bar

MODEL = "gpt2"
# Timed as a whole and apart from attention.
SPLIT = ("generate", "smc_mlp", "never_mlp")
APART = "_no_attention"
LIMITED = ("smc_mlp_no_attention", "never_mlp_no_attention")
LENGTH_TASKS = (*SPLIT, *(name + APART for name in SPLIT))


def measure(options: Options, record: Record) -> Iterator[str]:
    """Put the curves, and the rows of scaling that belong to them, into `record`, point by point; yields each."""
    if MODEL not in options.models:
        return
    dtype = options.dtypes[0]
    if "length" in options.groups:
        yield from _lengths(dtype, options, record)
    if "curves" in options.groups:
        yield from _particles(dtype, options, record)
        yield from _vocabularies(dtype, options, record)
        yield from _memory(dtype, options, record)


def _lengths(dtype: str, options: Options, record: Record) -> Iterator[str]:
    sizes = options.sizes
    bench = Bench(MODEL, dtype, quick=options.quick)

    watches: dict[tuple[str, int], list[float]] = {}

    def tasks(length: int) -> dict[str, Task]:
        batch = Batch(sizes.length_particles, length)
        made = {}
        for name in SPLIT:
            apart = watches.setdefault((name, length), [])
            made[name] = _watched(bench.task(name, batch), apart)
        return made

    def rounds(length: int) -> int:
        return _rounds(sizes, Batch(sizes.length_particles, length))

    fixed = f"N = {sizes.length_particles}"
    for label, curve in _curve("time_t", dtype, sizes.lengths, SPLIT, fixed, tasks, rounds, record):
        for name in SPLIT:
            values = tuple(median(watches[name, x]) if watches.get((name, x)) else None for x in curve.x)
            curve = replace(curve, series={**curve.series, f"{name}{APART}": values})
        record.put(curve)
        if curve.series["generate"][-1] is not None:
            record.put(*_growths(curve, sizes.length_particles))
        yield label


def _watched(task: Task, apart: list[float]) -> Task:
    """The task; each run adds its seconds apart from attention to `apart`."""

    def run() -> None:
        total, attention = split(task.run)
        apart.append(total - attention)

    return Task(run, task.warm_up)


def _growths(curve: Curve, particles: int) -> Iterator[Row]:
    """Time per token at the last length over that at a tenth of it (or the first, if there is no such length)."""
    last = curve.x[-1]
    first = last // 10 if last // 10 in curve.x else curve.x[0]
    for task in LENGTH_TASKS:
        long, short = (curve.series[task][curve.x.index(length)] for length in (last, first))
        assert long is not None
        assert short is not None
        yield Row(
            name=f"growth_{task}_{last}_over_{first}", model=MODEL, dtype=curve.dtype, kind="scaling",
            ratio=long / last / (short / first), limit=limits.FLAT if task in LIMITED else None,
            median_s=long, peak_mb=None, task=f"growth_{task}", particles=particles, steps=last,
        )  # fmt: skip


def _particles(dtype: str, options: Options, record: Record) -> Iterator[str]:
    sizes = options.sizes
    bench = Bench(MODEL, dtype, quick=options.quick)
    names = ("generate", "smc_mlp")

    def tasks(n: int) -> dict[str, Task]:
        return {name: bench.task(name, Batch(n, sizes.short.steps)) for name in names}

    def rounds(n: int) -> int:
        return _rounds(sizes, Batch(n, sizes.short.steps))

    fixed = f"T = {sizes.short.steps}"
    for label, _ in _curve("time_n", dtype, sizes.particles, names, fixed, tasks, rounds, record):
        yield label


def _vocabularies(dtype: str, options: Options, record: Record) -> Iterator[str]:
    sizes = options.sizes
    # The low-rank head has no matrix of V × d of its own.
    names = ("generate", "smc_mlp", "smc_low_rank")

    def tasks(size: int) -> dict[str, Task]:
        bench = Bench(MODEL, dtype, quick=options.quick, vocab_size=size)
        return {name: bench.task(name, sizes.short) for name in names}

    fixed = f"N = {sizes.short.particles}, T = {sizes.short.steps}"
    for label, _ in _curve(
        "time_v", dtype, sizes.vocabularies, names, fixed, tasks, lambda _: _rounds(sizes, sizes.short), record
    ):
        yield label


def _curve(
    name: str,
    dtype: str,
    x: tuple[int, ...],
    names: tuple[str, ...],
    fixed: str,
    tasks: Callable[[int], dict[str, Task]],
    rounds: Callable[[int], int],
    record: Record,
) -> Iterator[tuple[str, Curve]]:
    """Time every point, and keep the curve as far as it has come."""
    found: dict[int, dict[str, Timing]] = {}
    before = os.getloadavg()
    for at in x:
        label = f"{MODEL} {dtype} {name}"
        found[at] = alternate(tasks(at), rounds(at), f"{label} = {at}", count=False)
        series = {task: tuple(found[each][task].median if each in found else None for each in x) for task in names}
        curve = Curve(name, MODEL, dtype, x, series, fixed)
        record.put(curve)
        record.put_load(label, before, os.getloadavg())
        yield f"{label} = {at}", curve


def _rounds(sizes: Sizes, batch: Batch) -> int:
    return 1 if batch.particles * batch.steps > sizes.one_round else sizes.rounds


def _memory(dtype: str, options: Options, record: Record) -> Iterator[str]:
    sizes, names = options.sizes, ("generate", "smc_mlp")
    processes = Processes()
    series: dict[str, list[float]] = {name: [] for name in names}
    with bar(f"{MODEL} {dtype} memory_n", len(names) * len(sizes.particles)) as report:
        for n in sizes.particles:
            for name in names:
                report(sum(map(len, series.values())), f"{name} {n}")
                batch = Batch(n, sizes.short.steps)
                # Measured a moment ago, if the group "memory" was.
                known = record.rows.get(("memory", MODEL, dtype, f"{name}_{batch}"))
                found = known.peak_mb if known is not None and "memory" in options.groups else None
                job = Job(MODEL, dtype, name, batch, options.quick)
                series[name].append(processes.peak(job).peak_mb if found is None else found)
    made: dict[str, tuple[float | None, ...]] = {name: tuple(values) for name, values in series.items()}
    record.put(Curve("memory_n", MODEL, dtype, sizes.particles, made, f"T = {sizes.short.steps}"))
    yield f"{MODEL} {dtype} memory_n"
