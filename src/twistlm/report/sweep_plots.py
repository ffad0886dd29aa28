"""Pictures of sweeps, as PNG and PDF. They read pooled results and compute none."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from twistlm.core.estimates import Estimate
from twistlm.report.style import look, save
from twistlm.report.sweep_tables import title
from twistlm.runs.sweeps.pooled import Pooled

# What bands and bars contain.
CONTENTS = "mean over seeds; 95 % of scatter and of what all runs share (exact samples, log Z)"

Points = Sequence[tuple[float, Estimate]]


def plot_sweep(pooled: Pooled, out: Path) -> list[Path]:
    """Divergences against updates, bounds against particles, and when to resample; what could be drawn."""
    pictures: list[tuple[str, Callable[[Pooled], Any]]] = [("bounds", bounds), ("resampling", resampling)]
    if pooled.has_curves:
        pictures.insert(0, ("divergences", divergences))
    return [path for name, draw in pictures for path in _save(draw(pooled), out, name)]


def plot_frontier(sweeps: Sequence[Pooled], out: Path) -> list[Path]:
    """The frontier over all sweeps."""
    return _save(frontier(sweeps), out, "frontier")


def divergences(pooled: Pooled) -> Any:
    """Both KLs against updates: mean over seeds with a band, one line per method."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axes, name, kl in zip(panels, ("KL(q‖σ)", "KL(σ‖q)"), (pooled.kl_q_target, pooled.kl_target_q), strict=True):
        means, updates = [], set()
        for k, method in enumerate(pooled.methods):
            points = pooled.curve(method, kl)
            _band(axes, points, method, k)
            means += [estimate.value for _, estimate in points]
            updates |= {update for update, _ in points}
        axes.set_ylim(_view([0.0, *means]))
        axes.axhline(0, color="0.7", linewidth=0.8)
        axes.set_xscale("symlog", base=2, linthresh=1)
        if updates:
            ticks = sorted(updates)[:: 1 if len(updates) <= 8 else 2]
            axes.set(xlim=(-0.2, 1.1 * max(updates)), xticks=ticks, xticklabels=ticks)
            axes.minorticks_off()
        axes.set(xlabel="updates", ylabel="nats", title=name)
    _legend(figure, panels[0])
    figure.suptitle(f"{title(pooled)}: divergences during training; {CONTENTS}")
    return figure


def bounds(pooled: Pooled) -> Any:
    """Lower and upper bounds on log Z against particles, by method: mean over seeds."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    values: list[float] = []
    for axes, smc, name in zip(panels, (False, True), ("importance sampling (IWAE)", "SMC"), strict=True):
        for k, method in enumerate(pooled.methods):
            values += _sandwich(axes, pooled, method, "after", smc, k, method)
        _particles(axes, pooled)
        axes.set_title(name)
    panels[0].set(ylabel="bounds on log Z (nats)", ylim=_view(values))
    _legend(figure, panels[0])
    figure.suptitle(f"{title(pooled)}: lower bounds rise, upper bounds fall; {CONTENTS}")
    return figure


def resampling(pooled: Pooled) -> Any:
    """Never resampling, when ESS halves, and at every step: bounds against particles, a panel per method."""
    methods = pooled.methods
    columns = min(4, max(1, len(methods)))
    rows = max(1, math.ceil(len(methods) / columns))
    figure, grid = plt.subplots(
        rows, columns, figsize=(3.2 * columns + 1, 3.2 * rows + 0.6), sharey=True, squeeze=False, layout="constrained"
    )
    values: list[float] = []
    ways = (("never (SIS)", "after", False), ("ESS ≤ N/2", "after", True), ("every step", "every_step", True))
    for axes, method in zip(grid.flat, methods, strict=False):
        for k, (label, name, smc) in enumerate(ways):
            values += _sandwich(axes, pooled, method, name, smc, k, label)
        _particles(axes, pooled)
        axes.set_title(method)
    for axes in grid.flat[len(methods) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("bounds on log Z (nats)")
    grid[0, 0].set_ylim(_view(values))
    _legend(figure, grid[0, 0])
    figure.suptitle(f"{title(pooled)}: when to resample; {CONTENTS}")
    return figure


def frontier(sweeps: Sequence[Pooled]) -> Any:
    """E_q[log φ]/β against KL(q‖p₀): what is gained for how far from the prior, a line per method in order of β."""
    figure, axes = plt.subplots(figsize=(7, 4.8), layout="constrained")
    ordered = sorted(sweeps, key=lambda pooled: pooled.beta)
    means: list[tuple[list[float], list[float]]] = []
    known = list(dict.fromkeys(method for pooled in ordered for method in pooled.methods))
    for k, method in enumerate(known):
        of_method = [row for pooled in ordered for row in pooled.rows if row.method == method]
        x, y = [row.kl_q_prior for row in of_method], [row.log_phi_per_beta for row in of_method]
        means.append(([each.value for each in x], [each.value for each in y]))
        axes.errorbar(
            *means[-1],
            xerr=[_half(each) for each in x],
            yerr=[_half(each) for each in y],
            capsize=2,
            elinewidth=0.8,
            label=method,
            **look(k),
        )
    for pooled in ordered if len(ordered) > 1 else ():
        if rows := pooled.rows:
            last = max(rows, key=lambda row: row.kl_q_prior.value)
            at = (last.kl_q_prior.value, last.log_phi_per_beta.value)
            axes.annotate(f"β = {pooled.beta:g}", at, xytext=(6, 4), textcoords="offset points", fontsize=8)
    axes.set(xlim=_view([at for x, _ in means for at in x]), ylim=_view([at for _, y in means for at in y]))
    axes.set(xlabel="KL(q‖p₀) (nats)", ylabel="E_q[log φ] / β (nats)")
    names = " and ".join(dict.fromkeys(pooled.asked.experiment for pooled in ordered))
    axes.set_title(f"{names}: expected potential against distance from the prior")
    _legend(figure, axes)
    return figure


def _band(axes: Any, points: Points, label: str, index: int) -> None:
    style = look(index)
    axes.plot([at for at, _ in points], [estimate.value for _, estimate in points], label=label, **style)
    wide = [(at, e) for at, e in points if math.isfinite(e.half_width)]
    low, high = [e.low for _, e in wide], [e.high for _, e in wide]
    axes.fill_between([at for at, _ in wide], low, high, color=style["color"], alpha=0.15, linewidth=0)


def _sandwich(axes: Any, pooled: Pooled, method: str, name: str, smc: bool, index: int, label: str) -> list[float]:
    """Draws both bounds; returns their means."""
    means = []
    for side in ("lower", "upper"):
        points = [(at, e) for at, e in pooled.bounds(method, name, smc, side) if math.isfinite(e.value)]
        if points:
            # Slightly apart, so that bars of several series can be told from each other.
            x = [at * (1 + 0.03 * index) for at, _ in points]
            axes.errorbar(
                x,
                [e.value for _, e in points],
                yerr=[_half(e) for _, e in points],
                capsize=2,
                elinewidth=0.8,
                label=label,
                **look(index),
            )
            label = "_nolegend_"
            means += [e.value for _, e in points]
    return means


def _view(means: Sequence[float]) -> tuple[float, float] | None:
    """Limits that show all means: the interval of two or three seeds is much wider than they are apart."""
    finite = [value for value in means if math.isfinite(value)]
    if not finite:
        return None
    margin = 0.08 * (max(finite) - min(finite)) or 0.5
    return min(finite) - margin, max(finite) + margin


def _legend(figure: Any, axes: Any) -> None:
    """Beside the panels, where it hides nothing."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)


def _half(estimate: Estimate) -> float:
    return estimate.half_width if math.isfinite(estimate.half_width) else 0.0


def _particles(axes: Any, pooled: Pooled) -> None:
    if pooled.log_Z is not None:
        axes.axhline(pooled.log_Z.value, color="0.5", linewidth=0.8, label="log Z, pooled, 95 %")
        if math.isfinite(pooled.log_Z.half_width):
            axes.axhspan(pooled.log_Z.low, pooled.log_Z.high, color="0.5", alpha=0.12, linewidth=0)
    counts = sorted({b.num_particles for result in pooled.results for b in result.after.bounds})
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(n) for n in counts])
    axes.minorticks_off()
    axes.set_xlabel("number of particles N")


def _save(figure: Any, out: Path, name: str) -> list[Path]:
    paths = [out / f"{name}.{kind}" for kind in ("png", "pdf")]
    for path in paths:
        save(figure, path)
    return paths
