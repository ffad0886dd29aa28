"""Both divergences by method on three targets, from the tables of results.md and dense.md."""

import re
from pathlib import Path

from figures.explain_common import look, plt
from figures.results import beside, compared, table

DENSE = Path("dense.md").read_text(encoding="utf-8")
NUMBER = r"(\d+\.\d+)"


def dense(target: str) -> tuple[list[float], list[list[float]]]:
    """The base model's, and those of two seeds."""
    row = next(line for line in DENSE.splitlines() if line.startswith(f"| {target}, `small`"))
    pairs = [[float(a), float(b)] for a, b in re.findall(rf"{NUMBER} / {NUMBER}", row)]
    return pairs[0], pairs[-2:]


figure, panels = plt.subplots(1, 3, figsize=(8.4, 4.2), layout="constrained")
for axes, section in zip(panels, ("toxicity", "sentiment", "infilling-2-1"), strict=True):
    names = compared(axes, table(section), section)
    if section != "infilling-2-1":
        base, seeds = dense(section)
        for k in (0, 1):
            label = "of the base model" if k == 0 else None
            axes.axvline(base[k], color=look(k)["color"], linewidth=0.8, linestyle=":", label=label)
            for seed in seeds:
                axes.plot(seed[k], len(names) + beside(k), **{**look(k), "linestyle": ""})
        names.append("dense")
        axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0, None)
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
