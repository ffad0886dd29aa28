"""Both divergences by method on three targets, from the tables of results.md."""

from figures.explain_common import plt
from figures.results import compared, table

BESIDE = {
    "toxicity": ("toxicity-fresh", "toxicity-pooled"),
    "sentiment": ("sentiment-fresh", "sentiment-pooled"),
    "infilling-2-1": ("infilling-2-1-prompted",),
}

figure, panels = plt.subplots(1, 3, figsize=(8.4, 4.2), layout="constrained")
for axes, (section, others) in zip(panels, BESIDE.items(), strict=True):
    found = table(section)
    for other in others:
        found |= table(other)
    compared(axes, found, section)
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
