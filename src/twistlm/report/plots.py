"""Charts for paper, as PNG and PDF."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from twistlm.report.charts import Chart, Series
from twistlm.report.style import look, save


def plot(chart: Chart) -> Any:
    """The chart as a figure of matplotlib."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    if chart.span is not None:
        low, high, label = chart.span
        axes.axhspan(low, high, color="0.85", label=label)
    for number, series in enumerate(chart.series):
        DRAW[series.mark](axes, series, 1 + 0.03 * number if chart.log_x else 1.0)
    axes.set(xlabel=chart.x_title, ylabel=chart.y_title, title=chart.title)
    if chart.log_x:
        axes.set_xscale("log")
        axes.set_xticks(chart.ticks, [f"{tick:g}" for tick in chart.ticks])
        axes.minorticks_off()
    if len(chart.series) > 1 or chart.span is not None:
        # Below, where it hides nothing.
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    return figure


def save_charts(charts: Sequence[Chart], folder: Path) -> list[Path]:
    """Every chart as PNG and as PDF; their paths."""
    paths = []
    for chart in charts:
        figure = plot(chart)
        for kind in ("png", "pdf"):
            paths.append(folder / f"{chart.name}.{kind}")
            save(figure, paths[-1])
    return paths


def _bars(axes: Any, series: Series, nudge: float) -> None:
    # Slightly apart, so that bars of several series can be told from each other.
    x = [at * nudge for at in series.x]
    y = [math.nan if value is None else value for value in series.y]
    below = [max(0.0, value - low) for value, low in zip(y, series.low, strict=True)]
    above = [max(0.0, high - value) for value, high in zip(y, series.high, strict=True)]
    label = "_nolegend_" if series.side == "upper" else series.label
    axes.errorbar(x, y, yerr=[below, above], capsize=3, elinewidth=0.8, label=label, **look(series.look))


def _band(axes: Any, series: Series, nudge: float) -> None:
    style = look(series.look)
    axes.plot(series.x, series.y, label=series.label, **style)
    if series.low:
        axes.fill_between(series.x, series.low, series.high, color=style["color"], alpha=0.15, linewidth=0)


def _line(axes: Any, series: Series, nudge: float) -> None:
    style = {**look(series.look), "marker": ""}
    y = [math.nan if value is None else value for value in series.y]
    axes.plot(series.x, y, label=series.label, linewidth=1.2 if series.strong else 0.5, **style)


def _columns(axes: Any, series: Series, nudge: float) -> None:
    width = series.x[1] - series.x[0]
    axes.bar(series.x, series.y, width=width, label=series.label, color=look(series.look)["color"])


DRAW = {"bars": _bars, "band": _band, "line": _line, "columns": _columns}
