"""Learning rates of the `small` presets, by the paper's way: a coarse grid, the best of each method.

    python results/rates.py                      # every setting; forty minutes on two cores, resumable
    python results/rates.py --only sentiment

Each rate gets one run of a quarter of the updates; the best has the least KL(q‖σ) + KL(σ‖q), which is G − F whatever
log Z is. Writes all of them into results/rates.json; the presets in src/twistlm/experiments hold what was chosen.
"""

import json
import math
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import tyro

from methods import MAIN
from twistlm import api, grid
from twistlm.engines import local
from twistlm.rng import Rng
from twistlm.storage import load_json, save_json

GRID = (1e-4, 3e-4, 1e-3, 3e-3)
UPDATES = 64


class Trial(NamedTuple):
    """One run of the search."""

    setting: str
    method: str
    rate: float

    def file(self, out: Path) -> Path:
        """Where its result is, once it has one."""
        return out / self.setting / f"{self.method}-{self.rate:g}.json"


@dataclass(frozen=True)
class Options:
    """What to search.

    Attributes:
        only: names of sweeps; all by default.
        jobs: runs at a time, each in a process of its own.
        out: where the results of single runs are.
        file: what was found.
    """

    only: tuple[str, ...] = ()
    jobs: int = 2
    out: Path = Path("runs/rates")
    file: Path = Path("results/rates.json")


def main(options: Options) -> None:
    """Search, write, print."""
    found = json.loads(options.file.read_text()) if options.file.exists() else {}
    for setting in options.only or MAIN:
        request = MAIN[setting]
        config = request.config(request.methods[0])
        draws = options.out / setting / "draws.safetensors"
        api.collect(request.chosen().target(), config, Rng(0, ("sweep",)), draws, training=False)
        trials = [Trial(setting, method, rate) for method in request.methods for rate in GRID]
        todo = [trial for trial in trials if not trial.file(options.out).exists()]
        with closing(local.run(partial(run, options.out, draws), todo, options.jobs, grid.PRELOAD)) as outcomes:
            for trial, failure in outcomes:
                # A rate at which training breaks down is not chosen.
                if failure is not None:
                    save_json(trial.file(options.out), {"sum": None, "why": failure.message})
                print(*trial, load_json(trial.file(options.out)), flush=True)
        sums: dict[str, dict[str, float | None]] = {}
        for trial in trials:
            sums.setdefault(trial.method, {})[f"{trial.rate:g}"] = load_json(trial.file(options.out))["sum"]
        best = {method: min(values, key=partial(_order, values)) for method, values in sums.items()}
        found[setting] = {"KL(q‖σ) + KL(σ‖q) by learning rate": sums, "best": best}
        save_json(options.file, found)
        print(setting, best, flush=True)


def run(out: Path, draws: Path, trial: Trial) -> None:
    """Train by the trial's rate, and write the sum of both divergences."""
    request = replace(MAIN[trial.setting], num_updates=UPDATES, learning_rate=trial.rate)
    config = request.config(trial.method)
    evaluation = replace(config.evaluation, during_training=False, budget=2 * max(config.evaluation.num_particles))
    trained = api.train(request.chosen().target(), config=replace(config, evaluation=evaluation), draws=draws)
    found = trained.evaluate(methods=("iwae",)).divergences
    assert found.g is not None
    save_json(trial.file(out), {"sum": found.g.value - found.f.value, "f": found.f.value, "g": found.g.value})


def _order(sums: dict[str, float | None], rate: str) -> float:
    value = sums[rate]
    return math.inf if value is None or math.isnan(value) else value


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
