"""The genealogy of a real run of 16 particles, with its texts and effective sample sizes."""

from figures.explain_common import COLOURS, plt, read

record = read("explain-smc")
parents, pieces, weights = record["parents"], record["pieces"], record["weights"]
survives, resampled, ess = record["survives"], record["resampled"], record["ess"]
steps, particles = len(parents), len(parents[0])
figure, (tree, below) = plt.subplots(2, 1, figsize=(8.4, 8), height_ratios=(5, 1), sharex=True, layout="constrained")
for t in range(steps):
    for slot in range(particles):
        alive = survives[t][slot]
        colour = COLOURS[0] if alive else "0.65"
        if t:
            tree.plot([t, t + 1], [parents[t][slot], slot], color=colour, linewidth=1.2, alpha=0.4, zorder=1)
        tree.scatter(t + 1, slot, s=1500 * weights[t][slot], color=colour, alpha=0.25, linewidth=0, zorder=2)
        text = pieces[t][slot].replace("\n", "↵").strip() or "·"
        tree.text(t + 1, slot, text, ha="center", va="center", fontsize=7.5, zorder=3,
                  color="black" if alive else "0.5")  # fmt: skip
tree.set(ylabel="particle", yticks=range(particles), title=f"16 particles after “{record['prompt']}”")
tree.invert_yaxis()
below.plot(range(1, steps + 1), ess, color=COLOURS[1], marker="s", markersize=4)
below.axhline(record["ess_threshold"] * particles, color="0.6", linewidth=0.8, linestyle="--")
for t in range(steps):
    if resampled[t]:
        for axes in (tree, below):
            axes.axvline(t + 0.5, color=COLOURS[1], linewidth=0.8, linestyle=":")
below.set(xlabel="token", ylabel="ESS", ylim=(0, particles + 0.5), xticks=range(1, steps + 1))
