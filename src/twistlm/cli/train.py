"""`twistlm train`."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from twistlm.cli.options import (
    AnyPlace,
    Count,
    DemoUnlessGiven,
    Fraction,
    Group,
    Natural,
    NotNegative,
    Out,
    OwnExperimentName,
    Positive,
    RunExists,
    Seed,
    TargetOptions,
    Text,
)


@dataclass(frozen=True)
class OfTraining(Group):
    """What takes the place of the preset's settings."""

    method: Annotated[
        Text | None,
        arg(
            help="Loss, e.g. ctl, dpg or '0.7*ctl + 0.3*rl'; auto: settings that suit what φ can do; default: the "
            "preset's."
        ),
    ] = None
    twist: Annotated[Text | None, arg(help="Twist, e.g. lexical, low_rank, tied, mlp; default: the preset's.")] = None
    num_particles: Annotated[Count | None, arg(help="Sequences per update.")] = None
    num_minibatches: Annotated[
        Count | None,
        arg(help="Parts of an update's sequences, with one step of the optimiser each; default: the preset's."),
    ] = None
    num_updates: Annotated[
        Count | None, arg(help="At most so many updates; training stops early when it overfits.")
    ] = None
    optimiser: Annotated[
        Text | None, arg(help="adamw, or adafactor: less memory for a twist with a network of its own; default: adamw.")
    ] = None
    learning_rate: Annotated[Positive | None, arg(help="Of the optimiser.")] = None
    decay_after: Annotated[
        Natural | None,
        arg(help="Updates after which the learning rate falls, in a line to zero at the last; default: the preset's."),
    ] = None
    weight_decay: Annotated[NotNegative | None, arg(help="Of the optimiser, towards log ψ = 0.")] = None
    source: Annotated[
        Text | None,
        arg(
            help="Where training samples come from: draws, base, proposal, pool, or exact, smc "
            "(for roles that need no density), or several: proposal+exact."
        ),
    ] = None
    informed: Annotated[
        Text | None,
        arg(
            help="What SMC weighs by beside the twist: auto asks the potential about unfinished texts, ten times in a "
            "text at most; a number: after every so many tokens; never: not at all; off: nothing but the twist."
        ),
    ] = None
    num_draws: Annotated[Natural | None, arg(help="Base draws to collect first; 0 for none.")] = None
    held_out_prompts: Annotated[
        Fraction | None,
        arg(help="Of ten prompts or more: the share that training does not see, to be judged by; default: 0.2."),
    ] = None


def train(
    experiment: OwnExperimentName = None,
    *,
    out: Out,
    preset: DemoUnlessGiven = None,
    draws: Annotated[AnyPlace | None, arg(help="File of `twistlm collect` to use instead of drawing afresh.")] = None,
    seed: Seed = 0,
    settings: Annotated[OfTraining, arg(name="")],
    options: TargetOptions,
    existing: RunExists,
) -> None:
    """Learn a twist for an experiment's target, or one of your own.

    Base draws are collected first; they judge the twist (held out), evaluate it (never seen), and train it where the
    method is one that learns from them. The best twist by the held-out criterion is kept. Killed at any moment, it
    continues with --resume. Several processes that torchrun or accelerate launch has started train one twist together.
    For example:

    twistlm train toxicity --out runs/toxic

    twistlm train toxicity --preset paper --model models/tiny-stories --classifier models/toxicity --out runs/paper

    accelerate launch --multi_gpu --num_processes 2 -m twistlm train toxicity --out runs/toxic

    twistlm train --model smollm2 --potential jigsaw --prompts requests.txt --chat --num-tokens 30 --out runs/requests
    """
    from twistlm.core.errors import ConfigError
    from twistlm.core.remote import shown
    from twistlm.runs.automatic import AUTO, said, suited
    from twistlm.runs.train import train as learn

    if draws is not None and settings.num_draws is not None:
        raise ConfigError("--draws and --num-draws exclude each other, as a file is used whole; choose one")
    chosen = options.preset(experiment, preset, "demo")
    given = {name: value for name, value in settings.given.items() if name != "method"}
    config, target = chosen.config(settings.method).changed(**given), chosen.target()
    if settings.method == AUTO or (settings.method is None and experiment is None):
        print(said(*suited(target)), flush=True)
    run = learn(target, config=config, seed=seed, out=out, exists=existing.policy, draws=draws)
    if run.folder is None:
        # One of several processes, of which the first writes and speaks.
        return
    best = min(run.folder.load_history().looks, key=lambda look: look.held_out.value)
    place = shown(out)
    print(
        f"Best twist at update {best.update}, saved in {place}. Next: twistlm evaluate {place}, twistlm sample {place}"
    )
