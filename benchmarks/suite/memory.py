"""Memory above the weights: each figure in a process of its own.

The process builds transformers' model, gives back what that has freed, and notes its resident memory. Whatever comes
on top while the task is prepared and run counts: a copy of the weights that the package makes, the optimiser's state.
As soon as the package has taken what it needs of the model, the model is dropped. A twist's parameters are weights too:
limits are on what comes above both. Linux only in earnest; elsewhere the figures are upper bounds.
"""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from benchmarks.suite import limits, machine, methods
from benchmarks.suite.options import Batch, Options
from benchmarks.suite.record import Record, Row
from benchmarks.suite.tasks import Bench
from benchmarks.suite.times import HEADS
from twistlm.core.progress import bar
from twistlm.core.registry import available

TWISTS = (*HEADS, "backbone")
SHORT = (
    "generate", "base", *(f"smc_{twist}" for twist in TWISTS),
    *(f"{loss}_{twist}" for twist in (*TWISTS, "backbone:adafactor") for loss in ("ctl", "dpg")),
)  # fmt: skip
CASES: dict[str, dict[str, tuple[str, ...]]] = {
    "gpt2": {"short": SHORT, "long": ("generate", "smc_mlp"), "large": ("generate", "smc_mlp")},
    "smollm2": {"short": ("generate", "base", "smc_mlp", "smc_low_rank", "ctl_mlp", "dpg_mlp")},
    "stories": {"short": ("generate", *methods.UPDATES)},
}
QUICK_CASES: dict[str, dict[str, tuple[str, ...]]] = {
    "gpt2": {"short": ("generate", "smc_mlp", "ctl_mlp")},
    "smollm2": {"short": ("generate", "smc_mlp", "ctl_mlp")},
    "stories": {"short": ("generate", "sixo_mlp")},
}
IMPORTS = [
    "torch", "transformers.models.gpt2.modeling_gpt2", "transformers.models.llama.modeling_llama",
    "transformers.generation.utils", "twistlm.certificates.certify", "twistlm.models.huggingface",
    "twistlm.training.trainer", "twistlm.runs.experiments",
]  # fmt: skip
# The first growth is the allocator's own; from here on nothing may be added.
SETTLED = 50


@dataclass(frozen=True)
class Job:
    """What one process measures."""

    model: str
    dtype: str
    task: str
    batch: Batch
    quick: bool
    updates: int = 0


@dataclass(frozen=True)
class Peak:
    """MB above the base model's weights, and the twist's own parameters among them."""

    peak_mb: float
    twist_mb: float | None


def peak(job: Job) -> Peak:
    """Run the task once (an update twice, since the optimiser's state comes with the first)."""
    bench = Bench(job.model, job.dtype, quick=job.quick)
    for kind in ("twist", "loss", "source"):
        available(kind)  # imports their modules, which are no memory of the task
    machine.release()
    before = machine.resident_mb()
    machine.forget_peak()
    if job.task != "generate":
        bench.forget_model()
    task = bench.task(job.task, job.batch)
    trains = job.task.partition("_")[0] in available("loss")
    for _ in range(2 if trains else 1):
        task.run()
    return Peak(machine.peak_mb() - before, bench.twist_mb)


def growth(job: Job) -> float:
    """MB by which resident memory grows from update `SETTLED` to the last."""
    bench = Bench(job.model, job.dtype, quick=job.quick)
    task = bench.task(job.task, job.batch)
    settled = 0.0
    for number in range(job.updates):
        if number == SETTLED:
            machine.release()
            settled = machine.resident_mb()
        task.run()
    machine.release()
    return machine.resident_mb() - settled


class Processes:
    """Fresh processes, forked from one that has imported everything and done nothing."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTS)
        self._pool = ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1)

    def peak(self, job: Job) -> Peak:
        """`peak` in a fresh process."""
        return self._pool.submit(peak, job).result()

    def growth(self, job: Job) -> float:
        """`growth` in a fresh process."""
        return self._pool.submit(growth, job).result()


def measure(options: Options, record: Record) -> Iterator[str]:
    """Put the rows of memory into `record`, precision by precision; yields what was done."""
    processes = Processes()
    models = [model for model in options.models if model in CASES]
    for model in models if "memory" in options.groups else ():
        for dtype in options.dtypes:
            cases = CASES[model] if not options.quick else QUICK_CASES[model]
            jobs = [(batch, task) for batch, tasks in cases.items() for task in tasks]
            with bar(f"{model} {dtype} memory", len(jobs)) as report:
                for done, (size, task) in enumerate(jobs):
                    batch: Batch = getattr(options.sizes, size)
                    report(done, f"{task} {batch}")
                    found = processes.peak(Job(model, dtype, task, batch, options.quick))
                    record.put(_row(record, model, dtype, task, batch, found, limits.of_memory(task, size)))
            yield f"{model} {dtype} memory"
    if "updates" in options.groups and "gpt2" in options.models:
        batch, updates = options.sizes.updates
        for task in ("ctl_mlp", "dpg_mlp"):
            grown = processes.growth(Job("small", "fp32", task, batch, options.quick, updates))
            record.put(
                Row(
                    name=f"{task}_{updates}_updates", model="small", dtype="fp32", kind="growth", ratio=None,
                    limit=limits.GROWTH_MB, median_s=None, peak_mb=grown, task=task, particles=batch.particles,
                    steps=batch.steps,
                )
            )  # fmt: skip
        yield f"memory over {updates} updates"


def _row(record: Record, model: str, dtype: str, task: str, batch: Batch, found: Peak, limit: float | None) -> Row:
    if limit is not None and found.twist_mb is not None:
        limit += found.twist_mb
    baseline = record.rows.get(("memory", model, dtype, f"generate_{batch}"))
    against = found.peak_mb if task == "generate" else None if baseline is None else baseline.peak_mb
    return Row(
        name=f"{task}_{batch}", model=model, dtype=dtype, kind="memory",
        ratio=None if not against else found.peak_mb / against, limit=limit, median_s=None, peak_mb=found.peak_mb,
        task=task, particles=batch.particles, steps=batch.steps, twist_mb=found.twist_mb,
    )  # fmt: skip
