"""Static pictures for a run, as PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from twistlm.certificate import Certificate
from twistlm.estimates import Estimate, difference
from twistlm.report.style import COLOURS, MARKERS, save

STYLES = {"iwae": "--", "smc": "-"}


def plot_bounds(certificates: Mapping[str, Certificate], path: Path) -> None:
    """Lower and upper bounds on log Z against the number of particles, with 95 % bars; log Z as a band."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    reference = next(iter(certificates.values())).divergences.log_Z
    axes.axhspan(reference.low, reference.high, color="0.85", label="log Z used, 95 %")
    for k, (name, certificate) in enumerate(certificates.items()):
        methods = (
            ["iwae", "smc"] if len({b.lower.value for b in certificate.bounds}) == len(certificate.bounds) else ["iwae"]
        )
        for m, method in enumerate(methods):
            bounds = [b for b in certificate.bounds if b.method == method]
            label = f"{name}, {'IWAE = SMC' if len(methods) == 1 else method.upper()}"
            for side in ("lower", "upper"):
                points = [(b.num_particles, getattr(b, side)) for b in bounds if getattr(b, side) is not None]
                _errorbars(axes, points, COLOURS[k % 4], STYLES[method], MARKERS[k % 4], label, 1 + 0.04 * (k + m))
                label = "_nolegend_"
    axes.set(xscale="log", xlabel="number of particles N", ylabel="bounds on log Z (nats)")
    ticks = sorted({b.num_particles for c in certificates.values() for b in c.bounds})
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    axes.set_title("Sandwiches of log Z: lower bounds rise, upper bounds fall")
    axes.legend(frameon=False)
    save(figure, path)


def plot_divergences(history: Sequence[Mapping[str, Any]], log_Z: Estimate, path: Path) -> None:
    """KL(σ‖q) on held-out samples and KL(q‖σ) on fresh ones, against updates."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    rows = [row for row in history if row["kind"] == "evaluation"]
    held_out = [(row["update"], difference(Estimate.from_dict(row["held_out"]), log_Z)) for row in rows]
    _errorbars(axes, held_out, COLOURS[0], "-", "o", "KL(σ‖q), held-out samples", 1.0)
    fresh = [(row["update"], difference(log_Z, Estimate.from_dict(row["f"]))) for row in rows if "f" in row]
    if fresh:
        _errorbars(axes, fresh, COLOURS[1], "--", "s", "KL(q‖σ), fresh samples", 1.0)
    best = min(rows, key=lambda row: row["held_out"]["value"])["update"]
    axes.axvline(best, color="0.5", linestyle=":", label=f"kept: update {best}")
    axes.axhline(0, color="0.7", linewidth=0.8)
    axes.set(xlabel="updates", ylabel="nats", title="Divergences during training (95 % intervals)")
    axes.legend(frameon=False)
    save(figure, path)


def _errorbars(
    axes: Any, points: Sequence[tuple[float, Estimate]], colour: str, style: str, marker: str, label: str, nudge: float
) -> None:
    x = [at * nudge for at, _ in points]
    y = [estimate.value for _, estimate in points]
    below = [max(0.0, e.value - e.low) for _, e in points]
    above = [max(0.0, e.high - e.value) for _, e in points]
    axes.errorbar(x, y, yerr=[below, above], color=colour, linestyle=style, marker=marker, capsize=3, label=label)
