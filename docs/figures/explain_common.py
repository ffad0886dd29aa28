"""What the figures beside this file share. They are drawn in docs/, while the site is built."""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from twistlm.report.charts import COLOURS
from twistlm.report.style import look

# What is drawn of a record of bounds: whose, and by which method.
BOUNDS = {"base model": ("before", "iwae"), "twist, IWAE": ("after", "iwae"), "twist, SMC": ("after", "smc")}

__all__ = ["COLOURS", "bars", "by_particles", "look", "plt", "read", "sandwiches"]


def read(name: str) -> dict[str, Any]:
    """A record: docs/recorded/NAME.json, or any other JSON file below the root of the project."""
    path = Path("recorded", f"{name}.json") if "/" not in name else Path("..", name)
    return json.loads(path.read_text(encoding="utf-8"))


def bars(axes: Any, x: list[float], intervals: list[list[float | None]], label: str, index: int, **more: Any) -> None:
    """Values with their intervals, each value, low, high; an end that is None is left out."""
    style = {**look(index), **more}
    at = [(a, each) for a, each in zip(x, intervals, strict=True) if each is not None]
    values = [each[0] for _, each in at]
    below = [0.0 if low is None else max(0.0, value - low) for _, (value, low, _) in at]
    above = [0.0 if high is None else max(0.0, high - value) for _, (value, _, high) in at]
    axes.errorbar([a for a, _ in at], values, yerr=[below, above], capsize=2, elinewidth=0.8, label=label, **style)


def sandwiches(axes: Any, record: dict[str, Any]) -> dict[str, tuple[list[float], list[dict[str, Any]]]]:
    """Bounds on log Z of a record before and after training; where each line's are drawn, and the bounds themselves."""
    _, low, high = record["after"]["log_Z"]
    axes.axhspan(low, high, color="0.85", label="log Z used, 95 %")
    drawn = {}
    for k, (label, (when, method)) in enumerate(BOUNDS.items()):
        bounds = [each for each in record[when]["bounds"] if each["method"] == method]
        x = [each["num_particles"] * (1 + 0.04 * k) for each in bounds]
        bars(axes, x, [each["lower"] for each in bounds], label, k)
        bars(axes, x, [each["upper"] for each in bounds], "_nolegend_", k)
        drawn[label] = (x, bounds)
    by_particles(axes, record)
    axes.set_ylabel("bounds on log Z (nats)")
    axes.legend(frameon=False, fontsize="small")
    return drawn


def by_particles(axes: Any, record: dict[str, Any]) -> None:
    """The numbers of particles of a record of bounds, along x."""
    ticks = [each["num_particles"] for each in record["before"]["bounds"] if each["method"] == "iwae"]
    axes.set_xscale("log")
    axes.set_xticks(ticks, ticks)
    axes.minorticks_off()
    axes.set_xlabel("number of particles N")
