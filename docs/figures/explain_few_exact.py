"""What is known of KL(σ‖q) with so many exact samples."""

from figures.explain_common import bars, look, plt, read

rows = read("explain-exact-samples")["by_count"]
figure, axes = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
known = [row["kl_target_q"] is not None and None not in row["kl_target_q"] for row in rows]
places = list(range(len(rows)))
of = [at for at in places if known[at]]
bars(axes, [at - 0.1 for at in of], [rows[at]["kl_target_q"] for at in of], "KL(σ‖q)", 0, linestyle="")
bars(axes, [at + 0.1 for at in places], [row["kl_q_target"] for row in rows], "KL(q‖σ)", 1, linestyle="")
# A value, and no end on either side.
open_ended = [at for at in places if not known[at] and rows[at]["kl_target_q"] is not None]
axes.vlines([at - 0.1 for at in open_ended], 0, 1, transform=axes.get_xaxis_transform(), color="0.6", linestyle=":")
values = [rows[at]["kl_target_q"][0] for at in open_ended]
axes.plot([at - 0.1 for at in open_ended], values, **{**look(0), "linestyle": "", "markerfacecolor": "white"})
axes.set_xticks(places, [row["exact"] for row in rows])
axes.set(xlabel="exact samples", ylabel="nats", ylim=(0, None))
axes.legend(frameon=False)
