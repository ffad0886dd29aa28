"""Learning rates of the `small` presets, by the paper's way: a coarse grid, the best of each method.

    python results/rates.py                      # every experiment; an hour and a half on two cores, resumable
    python results/rates.py --only sentiment

Each rate gets one run of a quarter of the updates; the best has the lowest KL(q‖σ) + KL(σ‖q). Writes the grid into
results/rates.json; the presets in src/twistlm/experiments hold what was chosen.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from methods import MAIN
from twistlm import grid
from twistlm.errors import RunError
from twistlm.pooling import read
from twistlm.storage import save_json

GRID = (1e-4, 3e-4, 1e-3, 3e-3)
UPDATES = 128


@dataclass(frozen=True)
class Options:
    """What to search.

    Attributes:
        only: names of sweeps; all by default.
        jobs: runs at a time.
        out: where the runs are.
        file: what was found.
    """

    only: tuple[str, ...] = ()
    jobs: int = 2
    out: Path = Path("runs/rates")
    file: Path = Path("results/rates.json")


def main(options: Options) -> None:
    """Search, write, print."""
    found = json.loads(options.file.read_text()) if options.file.exists() else {}
    for name in options.only or MAIN:
        sums: dict[str, dict[str, float]] = {}
        for rate in GRID:
            request = replace(MAIN[name], num_seeds=1, num_updates=UPDATES, learning_rate=rate)
            folder = options.out / f"{name}-{rate:g}"
            try:
                grid.sweep(request, folder, jobs=options.jobs)
            except RunError as error:
                # A rate at which training breaks down is not chosen.
                print(error, flush=True)
            for row in read(folder).rows:
                both = [kl.value for kl in (row.kl_q_target, row.kl_target_q) if kl is not None]
                sums.setdefault(row.method, {})[f"{rate:g}"] = sum(both) if both else math.inf
        best = {method: min(values, key=lambda rate: values[rate]) for method, values in sums.items()}
        found[name] = {"sum of both KLs by learning rate": sums, "best": best}
        save_json(options.file, found)
        print(name, best, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
