"""`twistlm demo`."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from twistlm.cli.options import Out, PresetName, RunExists, Seed


def demo(
    out: Out = Path("runs/demo"),
    model: Annotated[
        Literal["stories", "smollm2"], arg(help="Base model: the bundled one, or a larger one.")
    ] = "stories",
    preset: PresetName = "demo",
    seed: Seed = 0,
    *,
    existing: RunExists,
) -> None:
    """The main job on real weights, from nothing to a certificate.

    Collects exact samples of a model's toxic continuations, trains a twist, and prints bounds on log Z,
    KL both ways before and after, and samples side by side. About a minute on two cores with the bundled models,
    three with SmolLM2-135M. Leaves certificate.json, samples.jsonl and diagnostics.json in the run
    folder, and report.html, which shows it all, with the charts beside it.
    """
    from twistlm.cli.jobs.demo import demo as run_demo
    from twistlm.runs.experiments import get_preset

    experiment = {"stories": "toxicity", "smollm2": "toxicity-smollm2"}[model]
    run_demo(get_preset(experiment, preset), out, seed, existing.policy)
