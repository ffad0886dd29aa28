"""What is drawn at two powers of a classifier."""

from figures.explain_common import plt, read
from figures.start_common import drawn

record = read("guide-steer")
runs = record["runs"]
figure, panels = plt.subplots(1, len(runs), figsize=(9.5, 3.4), layout="constrained")
for axes, run in zip(panels, runs, strict=True):
    drawn(axes, run["drawn"], record["edges"])
    axes.set(xlabel="p(rainy | text)", ylabel="share of texts", title=f"β = {run['beta']:g}")
figure.legend(
    *panels[-1].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize="small"
)
