"""What three samplers put on each mode of the target, and both divergences."""

from figures.explain_common import COLOURS, plt, read

record = read("explain-both-ways")
names = {"base": "base model", "tuned": "tuned on exact samples", "dropped": f"tuned without “{record['dropped']}”"}
nouns = sorted(record["target_modes"], key=lambda noun: -record["target_modes"][noun])
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 4), width_ratios=(3, 2), layout="constrained")
masses = [record["target_modes"][noun] for noun in nouns]
left.hlines(masses, [at - 0.42 for at in range(len(nouns))], [at + 0.42 for at in range(len(nouns))], color="black",
            label="target σ", zorder=3)  # fmt: skip
for k, (key, label) in enumerate(names.items()):
    masses = [record["samplers"][key]["modes"][noun] for noun in nouns]
    left.bar([at + 0.26 * (k - 1) for at in range(len(nouns))], masses, 0.24, color=COLOURS[k], label=label)
left.set_xticks(range(len(nouns)), nouns)
left.set(yscale="log", ylabel="probability", ylim=(1e-5, 1), title="“…, there was a ___ NOUN”")
left.legend(frameon=False, fontsize="small", loc="upper right")
for k, key in enumerate(names):
    of = record["samplers"][key]
    for at, kl in enumerate(("kl_q_target", "kl_target_q")):
        right.bar(at + 0.26 * (k - 1), of[kl], 0.24, color=COLOURS[k])
        value, low, high = of["certified"][kl]
        right.errorbar(at + 0.26 * (k - 1), value, yerr=[[value - (low or 0.0)], [(high or value) - value]],
                       color="black", capsize=3, linewidth=1)  # fmt: skip
right.set_xticks((0, 1), ("KL(q‖σ)", "KL(σ‖q)"))
right.set(ylabel="nats", title="exact (bars) and certified (95 %)")
