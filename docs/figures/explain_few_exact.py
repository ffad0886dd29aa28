"""What is known of KL(σ‖q) with so many exact samples."""

from figures.explain_common import bars, plt, read

rows = read("explain-exact-samples")["by_count"]
figure, axes = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
places = list(range(len(rows)))
bars(axes, [at - 0.1 for at in places], [row["kl_target_q"] for row in rows], "KL(σ‖q)", 0, linestyle="")
bars(axes, [at + 0.1 for at in places], [row["kl_q_target"] for row in rows], "KL(q‖σ)", 1, linestyle="")
axes.set_xticks(places, [row["exact"] for row in rows])
axes.set(xlabel="exact samples", ylabel="nats", ylim=(0, None))
axes.legend(frameon=False)
