"""Learning rates of the `small` presets, by the paper's way: a coarse grid, the best of each method.

    python -m papers.zhao2024.rates                      # every setting; forty minutes on two cores, resumable
    python -m papers.zhao2024.rates --only sentiment
    python -m papers.zhao2024.rates --only infilling-15-10 --by target

Each rate gets one run, as long as those of the tables; the best has the least KL(q‖σ) + KL(σ‖q), which is G − F
whatever log Z is, or the least KL(σ‖q) alone, which is G − log Z. Where the best is the lowest or the highest tried,
the next one is tried too. Writes all of them into papers/zhao2024/rates.json; the presets in `runs/experiments` hold
what was chosen.
"""

import json
import math
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import tyro

from papers.zhao2024 import tasks
from papers.zhao2024.settings import HERE, MAIN
from twistlm.core.rng import Rng
from twistlm.core.storage import load_json, save_json
from twistlm.runs.train import collect, train

LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
FIRST = range(2, 5)
MIDDLE = LADDER.index(3e-4)
# What is judged by, and how the file calls it.
CRITERIA = {"both": ("sum", "KL(q‖σ) + KL(σ‖q)"), "target": ("g", "KL(σ‖q) + log Z")}

Values = dict[float, float | None]


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
        by: both divergences, or KL(σ‖q) alone where KL(q‖σ) varies from draw to draw by more than a rate makes of it.
        jobs: runs at a time, in as many processes.
        out: where the results of single runs are.
        file: what was found.
    """

    only: tuple[str, ...] = ()
    by: Literal["both", "target"] = "both"
    jobs: int = 2
    out: Path = Path("runs/rates")
    file: Path = HERE / "rates.json"


def main(options: Options) -> None:
    """Search, write, print."""
    results = json.loads(options.file.read_text()) if options.file.exists() else {}
    key, name = CRITERIA[options.by]
    for setting in options.only or MAIN:
        request = MAIN[setting]
        config = request.config(request.methods[0])
        draws = options.out / setting / "draws.safetensors"
        collect(request.chosen().target(), config, Rng(0, ("sweep",)), draws, training=False)
        values: dict[str, Values] = {method: {} for method in request.methods}
        while todo := [Trial(setting, method, rate) for method in values for rate in _missing(values[method])]:
            fresh = tasks.missing(todo, options.out)
            with closing(tasks.do(partial(run, options.out, draws), fresh, options.jobs)) as outcomes:
                for trial, failure in outcomes:
                    # A rate at which training breaks down is not chosen.
                    if failure is not None:
                        save_json(trial.file(options.out), {"sum": None, "why": failure})
                    print(*trial, load_json(trial.file(options.out)), flush=True)
            for trial in todo:
                values[trial.method][trial.rate] = load_json(trial.file(options.out)).get(key)
        table = {method: {f"{rate:g}": tried[rate] for rate in sorted(tried)} for method, tried in values.items()}
        best = {method: _best(tried) for method, tried in values.items()}
        results[setting] = {f"{name} by learning rate": table, "best": best}
        save_json(options.file, results)
        print(setting, best, flush=True)


def run(out: Path, draws: Path, trial: Trial) -> None:
    """Train by the trial's rate, and write the sum of both divergences."""
    request = replace(MAIN[trial.setting], learning_rate=trial.rate)
    config = request.config(trial.method)
    config = config.changed(evaluation={"during_training": False, "budget": 2 * max(config.evaluation.num_particles)})
    trained = train(request.chosen().target(), config=config, draws=draws)
    divergences = trained.evaluate(methods=("iwae",)).divergences
    assert divergences.g is not None
    save_json(
        trial.file(out),
        {"sum": divergences.g.value - divergences.f.value, "f": divergences.f.value, "g": divergences.g.value},
    )


def _best(tried: Values) -> float:
    """The one of the least value; where nothing is learned at several, the one in the middle of the ladder."""

    def order(rate: float) -> tuple[float, int]:
        value = tried[rate]
        known = math.inf if value is None or math.isnan(value) else value
        return known, abs(LADDER.index(rate) - MIDDLE)

    return min(tried, key=order)


def _missing(tried: Values) -> list[float]:
    """What to try next: the middle of the ladder, then beyond the end at which the best is."""
    if not tried:
        return [LADDER[at] for at in FIRST]
    at = LADDER.index(_best(tried))
    return [rate for rate in LADDER[max(at - 1, 0) : at + 2] if rate not in tried]


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
