"""`twistlm sweep`."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from twistlm.cli.options import (
    OR_URL,
    AnyPlace,
    Count,
    EngineOptions,
    Fraction,
    Natural,
    OwnExperimentName,
    Positive,
    SmallUnlessGiven,
    TargetOptions,
    Text,
)


@dataclass(frozen=True)
class OfSweep:
    """What is compared, and what takes the place of the preset's settings."""

    methods: Annotated[
        Text,
        arg(
            help="Losses with commas between, or 'all': ctl, rl, sixo, fudge, dpg, ppo and gkl. Presets have names of "
            "their own, such as pooled."
        ),
    ] = "all"
    seeds: Annotated[Count, arg(help="So many runs of every method, with seeds 0, 1, …")] = 5
    twist: Annotated[Text | None, arg(help="Of every method, e.g. lora or backbone; default: the preset's.")] = None
    num_updates: Annotated[Count | None, arg(help="At most so many updates; default: the preset's.")] = None
    optimiser: Annotated[Text | None, arg(help="Of every method: adamw or adafactor; default: adamw.")] = None
    learning_rate: Annotated[Positive | None, arg(help="Of every method; default: the preset's for each.")] = None
    source: Annotated[Text | None, arg(help="Of the target's samples, e.g. exact; default: the preset's.")] = None
    num_draws: Annotated[Natural | None, arg(help="Base draws that all runs share; default: the preset's.")] = None
    held_out_prompts: Annotated[
        Fraction | None,
        arg(help="Of ten prompts or more: the share that training does not see, to be judged by; default: 0.2."),
    ] = None


def sweep(
    experiment: OwnExperimentName = None,
    *,
    out: Annotated[
        AnyPlace,
        arg(help=f"The sweep's folder. Asking the same again, or of more methods or seeds, goes on with it. {OR_URL}"),
    ],
    preset: SmallUnlessGiven = None,
    overwrite: Annotated[bool, arg(help="Replace the sweep in the folder by a new one.")] = False,
    asked: Annotated[OfSweep, arg(name="")],
    options: TargetOptions,
    workers: EngineOptions,
) -> None:
    """Compare methods on an experiment's target, or one of your own: every method with every seed.

    All are judged by the same exact samples.

    Killed at any moment, the same command continues it, run by run, and one that differs by more methods or seeds alone
    adds them. Runs that fail are reported at the end, and the others are done. Leaves in the folder: sweep.json (what
    was asked), draws.safetensors (shared by all runs), METHOD/seed-K/ (a run folder each, with certificate.json) and
    failures.json (if any). `twistlm report` tabulates and plots it, at any time. For example:

    twistlm sweep toxicity --seeds 3 --model models/tiny-stories --classifier models/toxicity --out runs/sweep
    """
    from twistlm.runs.sweeps.sweep import Request, parse_methods
    from twistlm.runs.sweeps.sweep import sweep as run

    request = Request(
        experiment,
        preset,
        options.options,
        options.aim(),
        methods=parse_methods(asked.methods),
        num_seeds=asked.seeds,
        twist=asked.twist,
        num_updates=asked.num_updates,
        optimiser=asked.optimiser,
        learning_rate=asked.learning_rate,
        source=asked.source,
        num_draws=asked.num_draws,
        held_out_prompts=asked.held_out_prompts,
    )
    run(request, out, engine=workers.made(), overwrite=overwrite)
