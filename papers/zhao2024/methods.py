"""The comparison of methods on the bundled models, and the page that shows it.

    python -m papers.zhao2024.methods                  # 7 methods, 5 seeds, 4 settings: two hours on two cores
    python -m papers.zhao2024.methods --ablations      # exact positives, powers of φ, the threshold; our own
    python -m papers.zhao2024.methods --long           # up to 204,800 sequences: hours
    python -m papers.zhao2024.methods --seeds 1 --only infilling-2-1
    python -m papers.zhao2024.methods --redraw         # nothing is run; the page is written anew from what is there

Every run is resumable, and so is the whole. Writes the tables into docs/results.md, whose pictures the site draws from
them, and curves into docs/recorded; what both have of sweeps whose runs are not here stays. More pictures of a sweep
(bounds by number of particles, with and without resampling): `twistlm report runs/results/NAME`.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from papers.zhao2024.page import EXACT, curves, write
from papers.zhao2024.settings import ABLATIONS, CURVES, HERE, LONG, MAIN
from twistlm.core.errors import RunError
from twistlm.core.storage import load_json, save_json
from twistlm.runs.engines import Local
from twistlm.runs.sweeps.pooled import read
from twistlm.runs.sweeps.sweep import sweep


@dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        ablations: these instead of the main tables.
        long: learning curves up to many more sequences, instead of either.
        only: names of sweeps; all by default.
        redraw: run nothing; write the page.
        seeds: of every method; by default five in the main tables.
        updates: of every run; by default those of the presets.
        jobs: runs at a time, in as many processes.
        out: where the runs are.
    """

    ablations: bool = False
    long: bool = False
    only: tuple[str, ...] = ()
    redraw: bool = False
    seeds: int | None = None
    updates: int | None = None
    jobs: int = 2
    out: Path = Path("runs/results")


def main(options: Options) -> None:
    """Run what is not done, then write the page from all that is."""
    requests = LONG if options.long else ABLATIONS if options.ablations else MAIN
    if unknown := sorted(set(options.only) - requests.keys()):
        raise SystemExit(f"no such sweep: {', '.join(unknown)}; choose from {', '.join(requests)}")
    for name in () if options.redraw else options.only or requests:
        request = requests[name]
        if options.seeds is not None:
            request = replace(request, num_seeds=options.seeds)
        if options.updates is not None:
            request = replace(request, num_updates=options.updates)
        print(f"--- {name}", flush=True)
        try:
            sweep(request, options.out / name, engine=Local(options.jobs))
        except RunError as error:
            # Failed runs are shown in the table by what is missing; the other sweeps go on.
            print(error, flush=True)
    done = {name: read(options.out / name) for name in (*MAIN, *ABLATIONS, *LONG) if (options.out / name).exists()}
    recorded = load_json(CURVES) if CURVES.exists() else {}
    save_json(CURVES, recorded | {name: curves(pooled) for name, pooled in done.items() if pooled.has_curves})
    files = {title: HERE / file for title, file in EXACT.items()}
    exact = {title: load_json(file) for title, file in files.items() if file.exists()}
    write(done, Path("docs/results.md"), exact, [*MAIN, *ABLATIONS, *LONG, *EXACT])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
