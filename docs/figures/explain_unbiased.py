"""log Ẑ of many runs with 16 particles each."""

from figures.explain_common import COLOURS, plt, read

record = read("explain-smc")
log_Z, low, high = record["log_Z"]
figure, axes = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
axes.axvspan(low, high, color="0.85", label="log Z, 95 %")
for row, found in enumerate(record["many"].values()):
    values = found["log_Z_hat"]
    heights = [row + 0.32 * (k / len(values) - 0.5) for k in range(len(values))]
    axes.scatter(values, heights, s=9, color=COLOURS[row], alpha=0.5)
    axes.plot([found["mean"]] * 2, [row - 0.3, row + 0.3], color=COLOURS[row], linewidth=2)
    axes.scatter(found["log_mean"], row, marker="D", s=45, color="black", zorder=3)
axes.set_yticks(range(len(record["many"])), list(record["many"]))
axes.invert_yaxis()
axes.set(xlabel="log Ẑ of a run (nats); bar: mean of log Ẑ; diamond: log of the mean of Ẑ")
axes.legend(frameon=False, loc="lower left", fontsize="small")
