"""Both divergences against the draws that training has made."""

from figures.explain_common import bars, plt, read

record = read("choose-draws")["methods"]
figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.8), layout="constrained")
for axes, kl, title in zip(panels, ("kl_q_target", "kl_target_q"), ("KL(q‖σ)", "KL(σ‖q)"), strict=True):
    for k, (name, found) in enumerate(record.items()):
        curve = found["curve"]
        bars(axes, [row["draws"] * (1 + 0.06 * k) + 8 * k for row in curve], [row[kl] for row in curve], name, k)
    counts = [row["draws"] for row in record["gkl"]["curve"]]
    axes.set_xscale("symlog", linthresh=100, linscale=0.4)
    axes.set_xticks(counts, [f"{count:,}" if count else "0" for count in counts], fontsize=8)
    axes.minorticks_off()
    axes.set(xlabel="sequences drawn for training", ylabel="nats", title=title, ylim=(0, None))
panels[0].legend(frameon=False)
