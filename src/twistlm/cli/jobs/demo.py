"""The main job from end to end on real weights: collect, train, certify before and after, show."""

import dataclasses
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from twistlm.certificates.certificate import Certificate
from twistlm.certificates.certify import improvement
from twistlm.certificates.verdict import verdict
from twistlm.core.estimates import Estimate
from twistlm.core.remote import shown
from twistlm.core.terminal import console
from twistlm.potentials.base import power_of
from twistlm.report.page import save_page
from twistlm.report.record import BASE, TWISTED, Record
from twistlm.report.tables import print_certificates, samples_table
from twistlm.runs.experiments import Preset
from twistlm.runs.run import Run
from twistlm.runs.texts import TextSamples
from twistlm.runs.train import train
from twistlm.sampling.target import Target

NUM_SHOWN = 8
PARTICLES_PER_SAMPLE = 64


def demo(preset: Preset, out: Path, seed: int, exists: str, *, verbose: bool = False) -> Run:
    """Run the preset into `out`, print its tables and leave certificate, samples and a report there."""
    started = time.perf_counter()
    target = preset.target()
    print(
        f"Target: p₀(s) φ(s) with p₀ = {target.model_name}, prompt {target.prompts}, {target.num_tokens} new tokens,\n"
        f"φ = {target.potential}. Twist: {preset.run.twist}; method: {preset.run.training.loss}; seed {seed}."
    )
    run = train(target, config=preset.run, seed=seed, out=out, exists=exists)
    trained = time.perf_counter() - started
    certificates = {name: run.evaluate(before=name == "before", save=False) for name in ("before", "after")}
    evaluation = run.fold("evaluation")
    gain = None if evaluation is None or not len(evaluation.exact) else improvement(run.sampler(), evaluation.exact)
    columns = {
        BASE: run.base_samples(NUM_SHOWN),
        f"{TWISTED}, {PARTICLES_PER_SAMPLE} particles": run.sample(NUM_SHOWN, num_particles=PARTICLES_PER_SAMPLE),
    }
    cost = {
        "base_draws": preset.run.num_draws,
        "seconds_training": round(trained, 1),
        "seconds_total": round(time.perf_counter() - started, 1),
        "peak_memory_gib": round(_peak_gib(), 2),
    }
    notes = {"improvement_kl_target_q": gain, "cost": cost}
    folder = run.folder
    assert folder is not None
    with folder.adding():
        folder.evaluations.add(certificates, dataclasses.asdict(run.config.evaluation), notes=notes)
        folder.save_samples(columns)
        save_page([Record.read(out, out.name)], folder.report)
    # Everything is on disk before it is shown.
    _show(target, certificates, gain, columns, verbose=verbose)
    print(
        f"{cost['seconds_total']:.0f} s, {trained:.0f} of them training; {cost['peak_memory_gib']:.1f} GiB of memory. "
        f"Results: {shown(out)}/\nReport, to be opened in a browser: {shown(folder.report)}"
    )
    return run


def _show(
    target: Target,
    certificates: Mapping[str, Certificate],
    gain: Estimate | None,
    columns: Mapping[str, TextSamples],
    *,
    verbose: bool,
) -> None:
    screen, lines = console(), verdict(certificates["after"], certificates["before"])
    if gain is not None:
        lines.append(f"KL(σ‖q) fell by {gain} nats (before − after, on the same {gain.n} exact samples).")
    print_certificates(screen, certificates, target.prompts, lines, verbose=verbose)
    # The score is φ, without its power.
    beta = power_of(target.potential)
    scores = {
        name: list(zip(drawn.texts, (drawn.log_phi / beta).exp().tolist(), strict=True))
        for name, drawn in columns.items()
    }
    screen.print(samples_table(scores))


def _peak_gib() -> float:
    """Peak resident memory of this process; the kernel counts kibibytes on Linux and bytes on macOS."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
