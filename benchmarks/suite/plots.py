"""The curves as pictures."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
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
PER_TOKEN = "Time per token against length"


def plot(record: Record, folder: Path) -> list[Path]:
    """One picture of every curve, named bench-CURVE.png (with the precision for others than fp32)."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for curve in record.curves.values():
        end = "" if curve.dtype == "fp32" else f"-{curve.dtype}"
        note = "   [quick run, tiny model: no result]" if record.quick else ""
        names = {f"bench-{curve.name.replace('_', '-')}{end}.png": False}
        if curve.name == "time_t":
            names[f"bench-per-token{end}.png"] = True
        for name, per_token in names.items():
            figure = draw(curve, per_token=per_token, note=note)
            figure.savefig(folder / name, dpi=130)
            plt.close(figure)
            paths.append(folder / name)
    return paths


def draw(curve: Curve, *, per_token: bool = False, note: str = "") -> Figure:
    """A curve over its variable; the site draws it while it is built.

    Args:
        curve: what was measured.
        per_token: seconds divided by the number of tokens, with what is left of them apart from attention.
        note: to be added to the title.
    """
    unit = "MB" if curve.name == "memory_n" else "ms per token" if per_token else "seconds"
    tasks = [task for task in curve.series if per_token or not task.endswith("no_attention")]
    figure: Figure
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for task in tasks:
        look = LOOKS[task]
        measured = [(x, y) for x, y in zip(curve.x, curve.series[task], strict=True) if y is not None]
        points = [(x, 1000 * y / x if per_token else y) for x, y in measured]
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
    axes.set_title((PER_TOKEN if per_token else TITLES[curve.name]) + note)
    axes.legend(frameon=False)
    return figure
