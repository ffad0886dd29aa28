"""Both divergences by method on three targets, from the tables of results.md and dense.md."""

import re
from pathlib import Path

from figures.explain_common import look, plt

RESULTS = Path("results.md").read_text(encoding="utf-8")
DENSE = Path("dense.md").read_text(encoding="utf-8")
NUMBER = r"(\d+\.\d+)"


def rows(section: str) -> dict[str, list[float]]:
    """KL(q‖σ), ±, KL(σ‖q), ± of every method."""
    part = RESULTS.split(f"<!-- section: {section} -->")[1].split("<!-- section")[0]
    found = re.findall(rf"^\| (\w+) \| {NUMBER} ± {NUMBER} \| {NUMBER} ± {NUMBER} \|", part, re.MULTILINE)
    assert found, section
    return {name: [float(each) for each in values] for name, *values in found}


def dense(target: str) -> tuple[list[float], list[list[float]]]:
    """The base model's, and those of two seeds."""
    row = next(line for line in DENSE.splitlines() if line.startswith(f"| {target}, `small`"))
    pairs = [[float(a), float(b)] for a, b in re.findall(rf"{NUMBER} / {NUMBER}", row)]
    return pairs[0], pairs[-2:]


figure, panels = plt.subplots(1, 3, figsize=(8.4, 4.2), layout="constrained")
for axes, section in zip(panels, ("toxicity", "sentiment", "infilling-2-1"), strict=True):
    found = rows(section)
    order = sorted(found, key=lambda name: -(found[name][0] + found[name][2]))
    for k, label in enumerate(("KL(q‖σ)", "KL(σ‖q)")):
        x = [found[name][2 * k] for name in order]
        error = [found[name][2 * k + 1] for name in order]
        y = [at + 0.16 * (2 * k - 1) for at in range(len(order))]
        axes.errorbar(x, y, xerr=error, capsize=2, elinewidth=0.8, label=label, **{**look(k), "linestyle": ""})
    names = list(order)
    if section != "infilling-2-1":
        base, seeds = dense(section)
        for k in (0, 1):
            label = "of the base model" if k == 0 else None
            axes.axvline(base[k], color=look(k)["color"], linewidth=0.8, linestyle=":", label=label)
            for seed in seeds:
                axes.plot(seed[k], len(order) + 0.16 * (2 * k - 1), **{**look(k), "linestyle": ""})
        names.append("dense")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlim=(0, None), xlabel="nats", title=section)
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
