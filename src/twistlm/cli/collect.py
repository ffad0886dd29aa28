"""`twistlm collect`."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from twistlm.cli.options import (
    OR_URL,
    Count,
    DemoUnlessGiven,
    EngineOptions,
    FileExists,
    FilePlace,
    OwnExperimentName,
    Seed,
    TargetOptions,
)


@dataclass(frozen=True)
class HowMuch:
    """When it is enough."""

    num_samples: Annotated[Count | None, arg(help="Stop once so many exact samples are accepted, of every prompt.")] = (
        None
    )
    max_draws: Annotated[
        Count,
        arg(
            aliases=("--num-draws",),
            help="Draw at most so many sequences from the base model, those that --resume finds among them, rounded up "
            "to whole chunks (2,048 in most presets).",
        ),
    ] = 8192


def collect(
    experiment: OwnExperimentName = None,
    *,
    out: Annotated[FilePlace, arg(help=f"File to write (safetensors); `train --draws` reads it. {OR_URL}")],
    preset: DemoUnlessGiven = None,
    seed: Seed = 0,
    much: Annotated[HowMuch, arg(name="")],
    options: TargetOptions,
    existing: FileExists,
    workers: EngineOptions,
) -> None:
    """Collect exact samples of an experiment's target, or of one of your own, by rejection.

    Draws from the base model and accepts each with probability φ / sup φ. All draws are kept: weighted by φ they are
    training data. For example:

    twistlm collect toxicity --out runs/toxic.safetensors

    twistlm collect toxicity --prompts prompts.txt --num-draws 20000 --out runs/prompts.safetensors
    """
    from twistlm.core.errors import RunError
    from twistlm.core.folders import writing_file
    from twistlm.core.remote import shown
    from twistlm.core.rng import Rng
    from twistlm.sampling.smc import Keep

    policy = existing.policy
    if out.exists() and policy == "refuse":
        raise RunError(
            f"{out} exists already; add to it with --resume, replace it with --overwrite, or choose another --out"
        )
    chosen = options.preset(experiment, preset, "demo")
    target, engine = chosen.target(), workers.made()
    # Before φ is called, which may change what its function holds.
    _ = target.fingerprint
    target.check()
    with writing_file(out, replace=policy == "overwrite") as path:
        collection = target.collect(
            Rng(seed, ("twistlm collect",)),
            max_draws=much.max_draws,
            num_samples=much.num_samples,
            chunk=min(chosen.run.chunk, much.max_draws),
            path=path,
            keep=Keep(features=True, siblings=chosen.run.num_siblings),
            engine=engine,
        )
    n, hits = len(collection.draws), len(collection.exact)
    print(f"{hits} exact samples among {n} draws (acceptance {hits / n:.2%}, ESS {collection.ess:.0f}): {shown(out)}")
