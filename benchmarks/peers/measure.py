"""One measurement of one system: timed runs of its sampler, the memory they took, and what they say of log Z.

Every script of this folder is called in the same way, in whatever environment it needs:

    python SCRIPT.py --model FOLDER --particles 40 --tokens 40 --repeats 5 --seed 0 --json out.json
"""

import argparse
import gc
import json
import os
import platform
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

import problem
import torch
from tasks import TASKS


@dataclass(frozen=True)
class Settings:
    """What to run.

    Attributes:
        model: folder of a causal LM with its tokenizer.
        particles: N, sequences in a run.
        tokens: T, new tokens of each.
        repeats: independent runs, timed one by one.
        seed: of the first run; the others count up from it.
        dtype: precision of the network.
        penalty: λ of the target.
        task: which of the constraints is the target instead.
        long_prompt: the long prompt instead of the short one.
        keep_cache: what a system can keep from one run to the next (the prompt's keys and values, results), it keeps.
        masked: let outlines mask what would break the constraint.
        direct: weigh every next token by the constraint instead of adaptive rejection.
        defaults: leave batching and caching as a system's first example has them, instead of its fastest way.
        threads: of torch.
        json: where to write the result.
    """

    model: Path
    particles: int
    tokens: int
    repeats: int
    seed: int
    dtype: str
    penalty: float
    task: str
    long_prompt: bool
    keep_cache: bool
    masked: bool
    direct: bool
    defaults: bool
    threads: int
    json: Path


@dataclass(frozen=True)
class Outcome:
    """What one run found: log of the unbiased estimate of Z, and what else its system wants recorded."""

    log_Z_hat: float
    extra: dict[str, float] = field(default_factory=dict)


Sampler = Callable[[int, int, int], Outcome]
"""(seed, N, T) → the outcome of one run."""


def parse() -> Settings:
    """Settings from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--particles", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=sorted(problem.DTYPES), default="bfloat16")
    parser.add_argument("--penalty", type=float, default=problem.PENALTY)
    parser.add_argument("--task", choices=sorted(TASKS), default="date")
    parser.add_argument("--long-prompt", action="store_true")
    parser.add_argument("--keep-cache", action="store_true")
    parser.add_argument("--masked", action="store_true")
    parser.add_argument("--direct", action="store_true")
    parser.add_argument("--defaults", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, required=True)
    return Settings(**vars(parser.parse_args()))


def measure(system: str, load: Callable[[Settings], Sampler], packages: tuple[str, ...]) -> None:
    """Load a system as the command line says, run it, and report.

    Args:
        system: its name in the results.
        load: makes the sampler; not timed.
        packages: distributions whose versions matter besides torch and transformers.
    """
    settings = parse()
    torch.set_num_threads(settings.threads)
    start = time.perf_counter()
    sampler = load(settings)
    load_s = time.perf_counter() - start
    # Kernels are chosen and allocators filled at the first call; a short one leaves little in any cache.
    sampler(settings.seed + 1_000_000, min(settings.particles, 4), min(settings.tokens, 4))
    gc.collect()
    forget_peak()
    resident_mb = resident()
    seconds, outcomes = [], []
    for turn in range(settings.repeats):
        gc.collect()
        start = time.perf_counter()
        outcomes.append(sampler(settings.seed + turn, settings.particles, settings.tokens))
        seconds.append(time.perf_counter() - start)
    record: dict[str, Any] = {
        "system": system,
        "settings": {**asdict(settings), "model": settings.model.name, "json": None},
        "versions": {name: version(name) for name in ("torch", "transformers", *packages)},
        "python": platform.python_version(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "load_s": load_s,
        "seconds": seconds,
        "resident_mb": resident_mb,
        "peak_mb": peak(),
        # JSON has no −inf: a run without a living particle is null.
        "log_Z_hat": [outcome.log_Z_hat if isfinite(outcome.log_Z_hat) else None for outcome in outcomes],
        "extra": [outcome.extra for outcome in outcomes],
    }
    settings.json.write_text(json.dumps(record, indent=2) + "\n")
    print(f"{system}: {settings.particles * settings.tokens / median(seconds):.1f} tokens/s")
    print(f"peak memory: {record['peak_mb']:.0f} MB, of which {record['peak_mb'] - resident_mb:.0f} MB above the model")
    print(f"log Z: {[round(outcome.log_Z_hat, 3) for outcome in outcomes]}")


def forget_peak() -> None:
    """Let the kernel's record of the highest resident memory start again (Linux; a no-op elsewhere)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak() -> float:
    """Highest resident memory since `forget_peak`, in MB (since the process began if not on Linux)."""
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident() -> float:
    """Resident memory now, in MB (0 if not on Linux)."""
    return _status("VmRSS") or 0.0


def _status(name: str) -> float | None:
    try:
        return float(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        return None
