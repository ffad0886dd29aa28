"""What commands cost, and what a second worker is worth: docs/scale.md's figures.

    python -m benchmarks.scaling                 # minutes on two idle cores; into benchmarks/scaling.json
    python -m benchmarks.scaling --quick         # shows that it runs, and is written nowhere

Every worker has one thread. Weak scaling: as much work for each of one and of two Ray workers, by turns, after both
have loaded everything; its efficiency is the time that one takes over the time that two take. The cost of a draw is
timed in this process, over lengths and batches, and fitted by least squares as

    seconds = a + b · T + c · N · T

for N draws of T tokens, relative errors counting: a and b are what a call and a step cost whatever the batch is, c what
a token does.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch
import tyro

from benchmarks.suite.machine import describe
from twistlm.core.rng import Rng
from twistlm.core.storage import save_json
from twistlm.core.work import Engine
from twistlm.potentials import Classifier
from twistlm.runs.engines import Ray
from twistlm.runs.experiments import get_preset
from twistlm.runs.sweeps.sweep import CERTIFICATES
from twistlm.runs.train import collect, train
from twistlm.sampling.smc import Keep
from twistlm.sampling.target import Target

PROMPT = "Once upon a time, there was a"
CHUNK = 512


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        chunks: of a collection, for each worker.
        updates: of each run of a sweep, one for each worker.
        repeats: of each, by turns.
        quick: next to nothing of each.
        output: file of the results.
    """

    chunks: int = 6
    updates: int = 24
    repeats: int = 3
    quick: bool = False
    output: Path = Path("benchmarks/scaling.json")


def main(options: Options) -> None:
    """Measure everything."""
    if options.quick:
        options = replace(options, chunks=1, updates=1, repeats=1)
    os.environ["TWISTLM_PROGRESS"] = "0"
    torch.set_num_threads(1)
    # Room for both engines; those who have nothing to do take no time.
    ray.init(num_cpus=3, include_dashboard=False, logging_level="ERROR")
    found: dict[str, Any] = {"machine": describe(), "cost": _cost(options), "weak_scaling": {}}
    for name, work in (("collect", _collect), ("sweep", _sweep)):
        found["weak_scaling"][name] = _scaled(work, options)
        print(name, found["weak_scaling"][name], flush=True)
    if not options.quick:
        save_json(options.output, found)


def _target(num_tokens: int = 20) -> Target:
    return Target("stories", Classifier("toxicity", "toxic"), PROMPT, num_tokens)


def _scaled(work: Callable[[Options, int, Engine], float], options: Options) -> dict[str, Any]:
    """Seconds of one and of two workers, by turns."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with Ray(1).start(_target().context) as one, Ray(2).start(_target().context) as two:
        engines = {1: one, 2: two}
        for count, engine in engines.items():
            # Long enough that none does another's piece while that one is still starting.
            for _ in engine.do([_loaded] * count, None):
                pass
            work(replace(options, chunks=2, updates=1), count, engine)
        for _ in range(options.repeats):
            for count, engine in engines.items():
                seconds[count].append(work(options, count, engine))
    return {
        "seconds": {str(count): each for count, each in seconds.items()},
        "efficiency": statistics.median(seconds[1]) / statistics.median(seconds[2]),
    }


def _loaded(at: object) -> None:
    time.sleep(20)


def _collect(options: Options, count: int, engine: Engine) -> float:
    draws, begun = options.chunks * CHUNK * count, time.perf_counter()
    _target().collect(Rng(0), max_draws=draws, chunk=CHUNK, keep=Keep(features=True), engine=engine)
    return time.perf_counter() - begun


@dataclass(frozen=True)
class OneRun:
    """What a worker does for one run of a sweep."""

    seed: int
    updates: int
    draws: Path

    def __call__(self, at: object) -> None:
        preset = get_preset("toxicity", "smoke")
        config = preset.config("ctl").changed(num_updates=self.updates)
        run = train(preset.target(), config=config, seed=self.seed, draws=self.draws)
        for how in CERTIFICATES.values():
            run.evaluate(seed=self.seed, **how)


def _sweep(options: Options, count: int, engine: Engine) -> float:
    # The draws that all runs share come before them.
    draws, preset = (
        Path(tempfile.gettempdir()) / f"twistlm-scaling-{os.getpid()}.safetensors",
        get_preset("toxicity", "smoke"),
    )
    if not draws.exists():
        collect(preset.target(), preset.config("ctl"), Rng(0, ("sweep",)), draws, training=True)
    pieces = [OneRun(seed, options.updates, draws) for seed in range(count)]
    begun = time.perf_counter()
    for _ in engine.do(pieces, None):
        pass
    return time.perf_counter() - begun


def _cost(options: Options) -> dict[str, Any]:
    """Of base draws with φ: bundled story model and toxicity classifier, one thread."""
    sizes = [(n, t) for n in (64, 256, 1024) for t in (10, 20, 40)]
    rows, seconds = [], []
    for n, t in [(n, t) for n, t in sizes if not options.quick or n == 64]:
        target = _target(t)
        here = target.context()
        here.sampler.base.draw_at_once(Rng(0), here.cases, 8)
        times = []
        for k in range(options.repeats):
            begun = time.perf_counter()
            here.sampler.base.draw_at_once(Rng(k + 1), here.cases, n)
            times.append(time.perf_counter() - begun)
        rows.append([1.0, t, n * t])
        seconds.append(statistics.median(times))
        print(n, t, f"{seconds[-1]:.3f} s", flush=True)
    matrix, values = torch.tensor(rows, dtype=torch.float64), torch.tensor(seconds, dtype=torch.float64)
    fit = torch.linalg.lstsq(matrix / values.unsqueeze(1), torch.ones_like(values)).solution
    errors = ((matrix @ fit - values) / values).abs()
    return {
        "sizes": [[round(row[2] / row[1]), int(row[1])] for row in rows],
        "seconds": seconds,
        "fit": dict(zip(("call", "step", "token"), fit.tolist(), strict=True)),
        "largest_relative_error": float(errors.max()),
    }


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
