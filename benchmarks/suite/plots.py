"""The curves as pictures, PNG."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator

from benchmarks.suite.record import Curve, Record


@dataclass(frozen=True)
class Look:
    """How a task is drawn. Colours are Okabe and Ito's; line and marker say the same without colour."""

    label: str
    colour: str
    line: str
    marker: str


LOOKS = {
    "generate": Look("transformers' generate", "#000000", "-", "s"),
    "smc_mlp": Look("SMC, MLP head", "#0072B2", "-", "o"),
    "smc_low_rank": Look("SMC, low-rank head", "#D55E00", "-.", "^"),
    "never_mlp": Look("SMC, never resampling", "#CC79A7", "-", "v"),
    "generate_no_attention": Look("generate, apart from attention", "#000000", ":", "s"),
    "smc_mlp_no_attention": Look("SMC, apart from attention", "#0072B2", ":", "o"),
    "never_mlp_no_attention": Look("never resampling, apart from attention", "#CC79A7", ":", "v"),
}
AXES = {"time_n": "particles N", "time_t": "new tokens T", "time_v": "vocabulary V", "memory_n": "particles N"}
TITLES = {
    "time_n": "Time against the number of particles",
    "time_t": "Time against length",
    "time_v": "Time against the size of the vocabulary",
    "memory_n": "Peak memory above weights against the number of particles",
}


def plot(record: Record, folder: Path) -> list[Path]:
    """One picture of every curve, named bench-CURVE.png (with the precision for others than fp32)."""
    paths = []
    for curve in record.curves.values():
        end = "" if curve.dtype == "fp32" else f"-{curve.dtype}"
        note = "   [quick run, tiny model: no result]" if record.quick else ""
        unit = "MB" if curve.name == "memory_n" else "seconds"
        name = f"bench-{curve.name.replace('_', '-')}{end}.png"
        shown = [task for task in curve.series if not task.endswith("no_attention")]
        paths.append(_draw(curve, shown, lambda x, y: y, unit, TITLES[curve.name] + note, folder / name))
        if curve.name == "time_t":
            path = folder / f"bench-per-token{end}.png"
            title = f"Time per token against length{note}"
            paths.append(_draw(curve, list(curve.series), lambda x, y: 1000 * y / x, "ms per token", title, path))
    return paths


def _draw(
    curve: Curve, tasks: Sequence[str], value: Callable[[int, float], float], unit: str, title: str, path: Path
) -> Path:
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for task in tasks:
        look = LOOKS[task]
        points = [(x, value(x, y)) for x, y in zip(curve.x, curve.series[task], strict=True) if y is not None]
        axes.plot(
            [x for x, _ in points], [y for _, y in points], color=look.colour, linestyle=look.line, marker=look.marker,
            label=look.label,
        )  # fmt: skip
    axes.set(xscale="log", xlabel=f"{AXES[curve.name]}   ({curve.fixed}, GPT-2 shape, {curve.dtype})", ylabel=unit)
    if unit == "seconds" and curve.name != "time_v":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    else:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.4g}")
    # A label that would run into the next one is left out.
    crowded = [x for x, after in pairwise(curve.x) if after < 1.3 * x]
    axes.set_xticks(curve.x, ["" if x in crowded else f"{x:,}" for x in curve.x])
    axes.minorticks_off()
    axes.grid(color="0.9")
    axes.set_title(title)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
