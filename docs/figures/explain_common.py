"""What the figures beside this file share. They are drawn in docs/, while the site is built."""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from twistlm.report.style import COLOURS, look

# A page is as wide as eight inches of this.
plt.rcParams["font.size"] = 9

__all__ = ["COLOURS", "bars", "look", "plt", "read"]


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
