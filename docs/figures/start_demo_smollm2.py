"""Both bounds on log Z of the demo on SmolLM2, before and after training."""

from figures.explain_common import bars, plt, read

record = read("start-demo-smollm2")
lines = {
    "base model": ("before", "iwae"), "twist, IWAE": ("after", "iwae"), "twist, SMC": ("after", "smc"),
}  # fmt: skip
figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
value, low, high = record["after"]["log_Z"]
axes.axhspan(low, high, color="0.85", label="log Z used, 95 %")
for k, (label, (when, method)) in enumerate(lines.items()):
    bounds = [each for each in record[when]["bounds"] if each["method"] == method]
    x = [each["num_particles"] * (1 + 0.04 * k) for each in bounds]
    bars(axes, x, [each["lower"] for each in bounds], label, k)
    bars(axes, x, [each["upper"] for each in bounds], "_nolegend_", k)
ticks = [each["num_particles"] for each in record["before"]["bounds"] if each["method"] == "iwae"]
axes.set_xscale("log")
axes.set_xticks(ticks, ticks)
axes.minorticks_off()
axes.set(xlabel="number of particles N", ylabel="bounds on log Z (nats)")
axes.legend(frameon=False, fontsize="small")
