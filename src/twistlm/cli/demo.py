"""`twistlm demo`."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from twistlm.cli.options import Out, PresetName, RunExists, Seed, Verbose


def demo(
    out: Out = Path("runs/demo"),
    model: Annotated[
        Literal["stories", "smollm2"], arg(help="Base model: the bundled one, or a larger one.")
    ] = "stories",
    preset: PresetName = "demo",
    seed: Seed = 0,
    verbose: Verbose = False,
    *,
    existing: RunExists,
) -> None:
    """Train a twist on real weights and certify it, from nothing to a report.

    The demo collects exact samples of a model's toxic continuations, trains a twist, and prints a verdict, log Z and
    both KL divergences before and after training, and samples side by side. It takes under a minute on two cores with
    the bundled models, and three with SmolLM2-135M. The run folder then holds certificate.json, samples.jsonl,
    diagnostics.json, and report.html, which shows everything. `twistlm report` draws the charts as PNG and PDF.
    """
    from twistlm.cli.jobs.demo import demo as run_demo
    from twistlm.runs.experiments import get_preset

    experiment = {"stories": "toxicity", "smollm2": "toxicity-smollm2"}[model]
    run_demo(get_preset(experiment, preset), out, seed, existing.policy, verbose=verbose)
