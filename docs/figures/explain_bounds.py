"""Both bounds on log Z, and their gap, against the number of particles."""

from figures.explain_common import bars, look, plt, read

record = read("explain-bounds")
lines = {
    "base model": ("before", "iwae"), "twist, IWAE": ("after", "iwae"), "twist, SMC": ("after", "smc"),
}  # fmt: skip
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 4.2), layout="constrained")
value, low, high = record["after"]["log_Z"]
left.axhspan(low, high, color="0.85", label="log Z used, 95 %")
for k, (label, (when, method)) in enumerate(lines.items()):
    bounds = [each for each in record[when]["bounds"] if each["method"] == method]
    x = [each["num_particles"] * (1 + 0.04 * k) for each in bounds]
    bars(left, x, [each["lower"] for each in bounds], label, k)
    bars(left, x, [each["upper"] for each in bounds], "_nolegend_", k)
    right.plot(x, [each["upper"][0] - each["lower"][0] for each in bounds], label=label, **look(k))
ticks = [each["num_particles"] for each in record["before"]["bounds"] if each["method"] == "iwae"]
for axes in (left, right):
    axes.set_xscale("log")
    axes.set_xticks(ticks, ticks)
    axes.minorticks_off()
    axes.set_xlabel("number of particles N")
right.set(yscale="log", ylabel="upper − lower (nats)", title="the gap")
left.set(ylabel="bounds on log Z (nats)", title="lower bounds rise, upper bounds fall")
left.legend(frameon=False, fontsize="small")
