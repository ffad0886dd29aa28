"""`twistlm sweep`."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from twistlm.cli.options import AnyPath, Count, ExperimentName, ExperimentOptions, Positive, PresetName, Text


@dataclass(frozen=True)
class OfSweep:
    """What is compared, and what takes the place of the preset's settings."""

    methods: Annotated[
        Text, arg(help="Losses with commas between, or 'all': ctl, rl, sixo, fudge, dpg, ppo and gkl.")
    ] = "all"
    seeds: Annotated[Count, arg(help="So many runs of every method, with seeds 0, 1, …")] = 5
    num_updates: Annotated[Count | None, arg(help="At most so many updates; default: the preset's.")] = None
    learning_rate: Annotated[Positive | None, arg(help="Of every method; default: the preset's for each.")] = None
    source: Annotated[Text | None, arg(help="Of the target's samples, e.g. exact; default: the preset's.")] = None


def sweep(
    experiment: ExperimentName,
    out: Annotated[AnyPath, arg(help="The sweep's folder. Asking the same again continues it.")],
    preset: PresetName = "small",
    jobs: Annotated[
        Count, arg(help="So many runs at a time, each in a process of its own with its share of the cores.")
    ] = 1,
    overwrite: Annotated[bool, arg(help="Replace the sweep in the folder by a new one.")] = False,
    *,
    asked: Annotated[OfSweep, arg(name="")],
    options: ExperimentOptions,
) -> None:
    """Compare methods on an experiment: every method with every seed, judged by the same exact samples.

    Killed at any moment, the same command continues it, run by run. Runs that fail are reported at the end, and the
    others are done. Leaves in the folder: sweep.json (what was asked), draws.safetensors (shared by all runs),
    METHOD/seed-K/ (a run folder each, with certificate.json) and failures.json (if any). `twistlm table` and
    `twistlm plot` read it, at any time.
    """
    from twistlm.runs.sweeps.sweep import Request, parse_methods
    from twistlm.runs.sweeps.sweep import sweep as run

    request = Request(
        experiment,
        preset,
        options.given,
        parse_methods(asked.methods),
        asked.seeds,
        asked.num_updates,
        asked.learning_rate,
        asked.source,
    )
    run(request, out, jobs=jobs, overwrite=overwrite)
