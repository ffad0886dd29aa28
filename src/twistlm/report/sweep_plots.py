"""Pictures of sweeps, as PNG and PDF. They read pooled results and compute none."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.lines import Line2D

from twistlm.core.estimates import Estimate
from twistlm.report.style import look, save
from twistlm.report.sweep_tables import title
from twistlm.runs.sweeps.pooled import Pooled, Result, Row

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
    """E_q[log φ]/β against KL(q‖p₀): what is gained for how far from the prior, a line per method in order of β.

    Every seed is a small mark and their mean a large one, the larger the greater β. The interval of two or three seeds
    is much wider than they are apart: an end that the picture does not reach is a short arrow from the mean.
    """
    figure, axes = plt.subplots(figsize=(8, 5.4), layout="constrained")
    ordered = sorted(sweeps, key=lambda pooled: pooled.beta)
    sizes = {beta: 5.0 + 2.5 * k for k, beta in enumerate(sorted({pooled.beta for pooled in ordered}))}
    known = list(dict.fromkeys(method for pooled in ordered for method in pooled.methods))
    # First what is seen, which is what the limits show; then the ends of intervals, within these.
    places: list[tuple[float, float]] = []
    for k, method in enumerate(known):
        style = {**look(k), "linestyle": "none", "alpha": 0.6, "markersize": 4, "markeredgewidth": 0}
        for pooled in ordered:
            seeds = [_place(result, pooled.beta) for result in pooled.of(method)]
            axes.plot([x for x, _ in seeds], [y for _, y in seeds], **style)
            places += seeds
        means = [(row.kl_q_prior.value, row.log_phi_per_beta.value) for _, row in _rows(ordered, method)]
        axes.plot([x for x, _ in means], [y for _, y in means], **{**look(k), "marker": ""}, zorder=3)
        places += means
    axes.set(xlim=_view([x for x, _ in places]), ylim=_view([y for _, y in places]))
    for k, method in enumerate(known):
        for pooled, row in _rows(ordered, method):
            style = {**look(k), "linestyle": "none", "markersize": sizes[pooled.beta]}
            axes.plot(row.kl_q_prior.value, row.log_phi_per_beta.value, **style, zorder=4)
            _whiskers(axes, row.kl_q_prior, row.log_phi_per_beta, look(k)["color"])
    axes.set(xlabel="KL(q‖p₀) (nats)", ylabel="E_q[log φ] / β (nats)")
    names = " and ".join(dict.fromkeys(pooled.asked.experiment for pooled in ordered))
    axes.set_title(f"{names}: expected potential against distance from the prior")
    _frontier_legend(figure, known, sizes)
    return figure


def _rows(sweeps: Sequence[Pooled], method: str) -> list[tuple[Pooled, Row]]:
    """A method's row in each sweep that has one."""
    return [(pooled, row) for pooled in sweeps for row in pooled.rows if row.method == method]


def _place(result: Result, beta: float) -> tuple[float, float]:
    """Where a single run stands on the frontier."""
    divergences = result.after.divergences
    return divergences.kl_q_prior.value, divergences.log_phi.value / beta


# Length of an arrow, in points.
ARROW = 16


def _whiskers(axes: Any, x: Estimate, y: Estimate, colour: str) -> None:
    """The intervals of a mean: a line to an end that is in the picture, an arrow towards one that is not."""
    at = (x.value, y.value)
    for axis, (estimate, (least, most)) in enumerate(((x, axes.get_xlim()), (y, axes.get_ylim()))):
        for end, way in ((estimate.low, -1), (estimate.high, 1)):
            if least <= end <= most:
                to = (end, at[1]) if axis == 0 else (at[0], end)
                axes.plot(*zip(at, to, strict=True), color=colour, linewidth=0.8, alpha=0.6)
                axes.plot(*to, marker="|" if axis == 0 else "_", color=colour, markersize=6, alpha=0.6)
            else:
                offset = (way * ARROW, 0) if axis == 0 else (0, way * ARROW)
                arrow = {
                    "arrowstyle": "<-",
                    "color": colour,
                    "linewidth": 0.8,
                    "alpha": 0.7,
                    "shrinkA": 0,
                    "shrinkB": 0,
                }
                axes.annotate("", at, offset, textcoords="offset points", arrowprops=arrow)


def _frontier_legend(figure: Any, methods: Sequence[str], sizes: Mapping[float, float]) -> None:
    """Methods by colour, line and mark; β by size; and what is drawn."""
    entries = [Line2D([], [], label=method, **look(k)) for k, method in enumerate(methods)]
    plain: dict[str, Any] = {"color": "0.4", "marker": "o", "linestyle": "none"}
    if len(sizes) > 1:
        entries += [Line2D([], [], label=f"β = {beta:g}", markersize=size, **plain) for beta, size in sizes.items()]
    entries += [Line2D([], [], label="single seeds", markersize=4, alpha=0.6, **plain)]
    figure.legend(handles=entries, loc="outside right upper", frameon=False)
    figure.supxlabel(
        f"{CONTENTS}.\nAn arrow: the interval ends beyond the picture; the table says where.", fontsize="small"
    )


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
                yerr=[[_side(e, e.value - e.low) for _, e in points], [_side(e, e.high - e.value) for _, e in points]],
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


def _side(estimate: Estimate, length: float) -> float:
    """The length of one side of a bar; there is none where an end is not known."""
    return length if math.isfinite(estimate.half_width) else 0.0


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
