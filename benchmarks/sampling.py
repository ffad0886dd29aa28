"""What sampling and training cost, as ratios to transformers' own `generate` on the same model and batch.

    python benchmarks/sampling.py            # minutes; writes benchmarks/results.json
    python benchmarks/sampling.py --quick    # seconds, a tiny model: only shows that everything runs
    python benchmarks/sampling.py --check    # exits with an error if a ratio is above its limit

The model is GPT-2-shaped and random, so nothing is downloaded. It has no end-of-sequence token, so neither
side stops early. The tasks take turns in one process, after a warm-up each, and medians are reported.
"""

import gc
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from twistlm import smc
from twistlm.losses.ctl import ctl
from twistlm.models.huggingface import HuggingFaceLM
from twistlm.potentials.base import BasePotential
from twistlm.progress import bar
from twistlm.proposals import base
from twistlm.registry import lookup
from twistlm.rng import Rng
from twistlm.sources import Setting, from_proposal, score
from twistlm.twisted import TwistedLM
from twistlm.types import Prompts, Twist

RESULTS = Path(__file__).with_name("results.json")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
GENERATE, BASE, SMC, LONG_SMC, UPDATE = "generate", "base", "smc_mlp", "smc_mlp_long", "ctl_update_mlp"
LIMITS = {(SMC, "fp32"): 1.0, (SMC, "bf16"): 0.7, (LONG_SMC, "fp32"): 1.5, (LONG_SMC, "bf16"): 1.5}
PROMPT_LENGTH = 8

Task = Callable[[], object]


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        quick: a tiny model and few tokens, for a smoke test.
        check: exit with an error if a ratio is above its limit.
        repeats: timed runs of each task.
        steps: new tokens.
        long_steps: new tokens of the run that shows how the cost per token grows.
        particles: sequences in a batch.
        dtypes: precisions of the model.
        output: where to write the results.
    """

    quick: bool = False
    check: bool = False
    repeats: int = 5
    steps: int = 20
    long_steps: int = 200
    particles: int = 100
    dtypes: tuple[str, ...] = tuple(DTYPES)
    output: Path = RESULTS


@dataclass(frozen=True)
class Timing:
    """Median seconds of a task, and the highest resident memory of the process while it ran."""

    median_s: float
    peak_mb: float


@dataclass(frozen=True)
class Row:
    """A task's time over `generate`'s; of the long run, its cost per token over that of the short one."""

    name: str
    dtype: str
    ratio: float
    limit: float | None
    median_s: float
    peak_mb: float

    @property
    def passed(self) -> bool:
        """Whether the ratio keeps its limit, if it has one."""
        return self.limit is None or self.ratio <= self.limit


class Free(BasePotential):
    """φ = 1 at no cost, so that the sampler is what is timed."""

    def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """Zeros [B]."""
        return torch.zeros(tokens.shape[0], dtype=torch.float64)


def main(options: Options) -> list[Row]:
    """Measure, print, and write the results."""
    if options.quick:
        options = replace(options, repeats=2, steps=4, long_steps=8, particles=6)
    machine = describe_machine()
    load = [os.getloadavg()]
    rows = [row for dtype in options.dtypes for row in measure(dtype, options)]
    load.append(os.getloadavg())
    show(rows)
    record = {
        "machine": {**machine, "load_average": load},
        "options": {name: value for name, value in asdict(options).items() if name != "output"},
        "rows": [asdict(row) for row in rows],
    }
    options.output.write_text(json.dumps(record, indent=2, default=str) + "\n")
    return rows


def measure(dtype: str, options: Options) -> list[Row]:
    """Every ratio in one precision."""
    lm = random_lm(DTYPES[dtype], options)
    tasks = make_tasks(lm, options)
    timings = alternate(tasks, options.repeats, dtype)
    rows = []
    for name, timing in timings.items():
        if name == LONG_SMC:
            ratio = timing.median_s / timings[SMC].median_s * options.steps / options.long_steps
        else:
            ratio = timing.median_s / timings[GENERATE].median_s
        rows.append(Row(name, dtype, ratio, LIMITS.get((name, dtype)), timing.median_s, timing.peak_mb))
    return rows


def random_lm(dtype: torch.dtype, options: Options) -> HuggingFaceLM:
    """A GPT-2-shaped model with random weights and no special tokens."""
    torch.manual_seed(0)
    shape: dict[str, int] = {"n_layer": 6, "n_embd": 768, "n_head": 12, "vocab_size": 50_257}
    if options.quick:
        shape = {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 500}
    config = GPT2Config(**shape, eos_token_id=None, bos_token_id=None)
    model = GPT2LMHeadModel(config).to(dtype).eval()
    # A favour to `generate`: its last hidden states of the prompt are a strided view, for which torch's
    # bfloat16 product copies the output layer once per sequence (8 GB and 20 s for 100).
    model.lm_head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    return HuggingFaceLM(model, None, "random GPT-2")


def make_tasks(lm: HuggingFaceLM, options: Options) -> dict[str, Task]:
    """Everything that is timed, by name, on the same prompt and batch."""
    prompt = torch.randint(1, lm.vocab_size, (PROMPT_LENGTH,))
    batch = prompt.expand(options.particles, -1)
    twist: Twist = lookup("twist", "mlp").value(lm)
    # Not the zero that it starts from: log ψ of about ±1.
    torch.nn.init.normal_(twist.head.weight, std=0.2)  # type: ignore[attr-defined]
    plain, twisted = TwistedLM(lm, None, "ignore"), TwistedLM(lm, twist, "ignore")
    optimiser = torch.optim.AdamW(twist.module.parameters(), lr=1e-5)
    setting = Setting(twisted, Free(), prompt, options.steps)

    def generate() -> Tensor:
        made: Tensor = lm.model.generate(
            batch, attention_mask=torch.ones_like(batch), do_sample=True, top_k=0, use_cache=True,
            max_new_tokens=options.steps,
        )  # fmt: skip
        if made.shape[1] != PROMPT_LENGTH + options.steps:
            raise RuntimeError(f"generate made {made.shape[1] - PROMPT_LENGTH} tokens, not {options.steps}")
        return made

    def sample_base() -> object:
        return smc.run(
            Rng(0), plain, Free(), prompts=[prompt], num_particles=options.particles, num_steps=options.steps,
            proposal=base, ess_threshold=0.0,
        )  # fmt: skip

    def sample_smc(steps: int) -> object:
        return smc.run(
            Rng(0), twisted, Free(), prompts=[prompt], num_particles=options.particles, num_steps=steps,
            ess_threshold=1.0,
        )  # fmt: skip

    def update() -> None:
        drawn = from_proposal(Rng(0), setting, options.particles)
        target, intermediate = score(twisted, {"target": drawn, "intermediate": drawn}, normaliser=False).scored
        optimiser.zero_grad()
        ctl(target, intermediate).backward()
        optimiser.step()

    return {
        GENERATE: generate,
        BASE: sample_base,
        SMC: lambda: sample_smc(options.steps),
        LONG_SMC: lambda: sample_smc(options.long_steps),
        UPDATE: update,
    }


def alternate(tasks: dict[str, Task], repeats: int, label: str) -> dict[str, Timing]:
    """Run the tasks in turn, a warm-up round first."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    peaks: dict[str, float] = {}
    with bar(f"{label}: warm-up and {repeats} rounds", len(tasks) * (1 + repeats)) as report:
        for turn in range(1 + repeats):
            for place, (name, task) in enumerate(tasks.items()):
                report(turn * len(tasks) + place, name)
                gc.collect()
                forget_peak()
                start = time.perf_counter()
                task()
                if turn > 0:
                    times[name].append(time.perf_counter() - start)
                peaks[name] = max(peaks.get(name, 0.0), peak_mb())
    return {name: Timing(median(times[name]), peaks[name]) for name in tasks}


def forget_peak() -> None:
    """Let the kernel's record of the highest resident memory start again (Linux; a no-op elsewhere)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_mb() -> float:
    """Highest resident memory since `forget_peak`, in MB (since the process began if not on Linux)."""
    try:
        status = Path("/proc/self/status").read_text()
        return float(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        # Kilobytes, but bytes on macOS.
        unit = 1024**2 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def describe_machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def show(rows: list[Row]) -> None:
    """The table on standard output."""
    table = Table(title="Time relative to generate (long run: cost per token relative to the short one)")
    for column in ("task", "dtype", "ratio", "limit", "median s", "peak MB"):
        table.add_column(column, justify="left" if column in ("task", "dtype") else "right")
    for row in rows:
        limit = "" if row.limit is None else f"{row.limit:.2f}"
        ratio = f"{row.ratio:.2f}" if row.passed else f"[red]{row.ratio:.2f}[/red]"
        table.add_row(row.name, row.dtype, ratio, limit, f"{row.median_s:.3f}", f"{row.peak_mb:.0f}")
    Console().print(table)


if __name__ == "__main__":
    chosen = tyro.cli(Options, description=__doc__)
    measured = main(chosen)
    if chosen.check and not all(row.passed for row in measured):
        sys.exit("a ratio is above its limit")
