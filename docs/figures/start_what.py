"""From the base model to the target, and what a certificate says of the sampler that was learned: the demo's run."""

from figures.explain_common import COLOURS, plt, read
from figures.start_common import drawn

record = read("start-what")
before, after = record["certificates"]["before"], record["certificates"]["after"]
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.7), width_ratios=(1.4, 1, 0.9), layout="constrained")

drawn(left, record["drawn"], [10**power for power in record["powers"]])
left.set(
    xscale="log",
    xlim=(10**-3.3, 1.05),
    xlabel="φ(text) = p(toxic | text)",
    ylabel="share of texts",
    title="What is drawn",
)
left.legend(frameon=False, fontsize="small", loc="upper center")

for k, (name, told) in enumerate((("base model", before), ("with twist", after))):
    rows = told["bounds"]
    x = [row["num_particles"] * (1 + 0.06 * k) for row in rows]
    for side, marker in (("lower", "^"), ("upper", "v")):
        at = [(a, row[side]) for a, row in zip(x, rows, strict=True) if row[side] is not None]
        values = [each[0] for _, each in at]
        errors = [[each[0] - each[1] for _, each in at], [each[2] - each[0] for _, each in at]]
        middle.errorbar([a for a, _ in at], values, yerr=errors, color=COLOURS[k], marker=marker, markersize=5,
                        linestyle="-" if k else ":", capsize=2, label=name if side == "lower" else None)  # fmt: skip
low, high = after["log_Z"][1:]
middle.axhspan(low, high, color="0.85", label="log Z, by all evidence")
middle.set(xscale="log", xlabel="particles", ylabel="nats", title="log Z: bounds from both sides")
middle.set_xticks([row["num_particles"] for row in after["bounds"]], [row["num_particles"] for row in after["bounds"]])
middle.minorticks_off()
middle.legend(frameon=False, fontsize="small")

for k, (name, told) in enumerate((("base model", before), ("with twist", after))):
    for row, key in enumerate(("kl_target_q", "kl_q_target")):
        value, low, high = told[key]
        right.errorbar(value, row + 0.12 - 0.24 * k, xerr=[[value - low], [high - value]], color=COLOURS[k], capsize=3,
                       marker="os"[k], label=name if row == 0 else None)  # fmt: skip
right.set_yticks([0, 1], ["KL(σ‖q)\nwhat q misses", "KL(q‖σ)\nwhat q makes up"])
right.set(xlim=(0, None), ylim=(-0.6, 1.6), xlabel="nats (0: q is σ)", title="How far the sampler is off")
right.legend(frameon=False, fontsize="small")
