"""Does memory stay flat? Resident memory over ten thousand updates and ten thousand calls of `Run.sample`.

    python -m benchmarks.steady                    # a quarter of an hour; into benchmarks/steady.json
    python -m benchmarks.steady --count 300        # shows that it runs
    python -m benchmarks.steady --only update      # one of the two; the other's figures stay in the file

The bundled models, few tokens. After a tenth of the way everything that is kept once is there; the slope is that of a
straight line through what follows, and is to be less than two kilobytes for each: an update leaves a row of the
history.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from benchmarks.suite.machine import describe, release, resident_mb
from twistlm import Target, train
from twistlm.core.storage import load_json, save_json
from twistlm.potentials import Classifier
from twistlm.runs.run import Run
from twistlm.training import trainer

LIMIT = 2.0
POINTS = 50


@dataclass(frozen=True)
class Options:
    """What to do.

    Attributes:
        count: updates, and calls.
        only: what is watched, "sample" and "update".
        output: file of the results.
    """

    count: int = 10_000
    only: tuple[Literal["sample", "update"], ...] = ("sample", "update")
    output: Path = Path("benchmarks/steady.json")


def main(options: Options) -> None:
    """Measure what is asked."""
    os.environ["TWISTLM_PROGRESS"] = "0"
    found: dict[str, Any] = load_json(options.output) if options.output.exists() else {}
    target = Target("stories", Classifier("toxicity", "toxic"), "Once upon a time, there was a", 4)
    for name in options.only:
        measured = {"sample": _calls, "update": _updates}[name](target, options.count)
        found[name] = {"machine": describe(), "count": options.count, **measured}
        print(name, measured["kb_each"], flush=True)
        if options.count >= 10_000:
            save_json(options.output, found)
    for name in options.only:
        if options.count >= 10_000 and found[name]["kb_each"] > LIMIT:
            raise SystemExit(f"{name}: memory grows by {found[name]['kb_each']:.1f} kB each (limit {LIMIT:g})")


def _calls(target: Target, count: int) -> dict[str, Any]:
    """Calls of `Run.sample`."""
    run = train(target, method="dpg", num_draws=512, num_updates=2, num_particles=8, seed=0)
    return _watched(count, lambda number: _sample(run, number))


def _updates(target: Target, count: int) -> dict[str, Any]:
    """Updates of one training."""
    seen: list[float] = []
    every, begun = max(1, count // POINTS), time.perf_counter()
    draws: dict[str, Any] = {
        "num_draws": 512,
        "num_particles": 8,
        "source": "proposal",
        "evaluate_every": every,
        "patience": None,
    }

    update = trainer.Trainer._update

    def watched(self: trainer.Trainer) -> dict[str, Any]:
        if self.progress.done % every == 0:
            release()
            seen.append(resident_mb())
        return update(self)

    trainer.Trainer._update = watched  # type: ignore[method-assign]
    train(target, method="dpg", num_updates=count, seed=1, **draws)
    return _slope(seen, every, time.perf_counter() - begun)


def _sample(run: Run, number: int) -> None:
    run.sample(4, seed=number)


def _watched(count: int, do: Callable[[int], None]) -> dict[str, Any]:
    every, seen, begun = max(1, count // POINTS), [], time.perf_counter()
    for number in range(count):
        if number % every == 0:
            release()
            seen.append(resident_mb())
        do(number)
    return _slope(seen, every, time.perf_counter() - begun)


def _slope(seen: list[float], every: int, seconds: float) -> dict[str, Any]:
    """Kilobytes for each, after the first tenth."""
    kept = torch.tensor(seen[len(seen) // 10 :], dtype=torch.float64)
    at = torch.arange(len(kept), dtype=torch.float64) * every
    slope = float(((at - at.mean()) * (kept - kept.mean())).sum() / (at - at.mean()).square().sum())
    return {"mb": [round(each, 1) for each in seen], "every": every, "kb_each": slope * 1024, "seconds": seconds}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
