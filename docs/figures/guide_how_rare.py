"""Both intervals of each threshold, and what a count of a million draws says."""

from figures.explain_common import COLOURS, plt, read

record = read("guide-how-rare")
KINDS = (
    ("value", "holds whatever was missed", "o"),
    ("seen", "if every way was seen", "s"),
    ("counted", f"counted among {record['count_draws']:,} draws", "^"),
)
figure, axes = plt.subplots(figsize=(9, 2.6), layout="constrained")
for row, found in enumerate(record["found"]):
    for k, (key, label, marker) in enumerate(KINDS):
        if found[key] is not None:
            value, low, high = found[key]
            error, name = [[value - low], [high - value]], label if row == 0 else None
            at = row + 0.25 * (k - 1)
            axes.errorbar(value, at, xerr=error, color=COLOURS[k], capsize=3, marker=marker, label=name)
axes.set_yticks(range(len(record["found"])), [f"p(toxic) ≥ {found['threshold']:g}" for found in record["found"]])
axes.invert_yaxis()
axes.set(xscale="log", xlabel="events in a million texts")
figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize="small")
