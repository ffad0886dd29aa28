"""Both bounds on log Z, and their gap, against the number of particles."""

import math

from figures.explain_common import bars, plt, read


def gap(lower: list[float], upper: list[float]) -> list[float]:
    """upper − lower with 95 %, of two means that are independent."""
    value = upper[0] - lower[0]
    half = math.hypot((upper[2] - upper[1]) / 2, (lower[2] - lower[1]) / 2)
    return [value, value - half, value + half]


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
    # What is less than its own error is left out: a logarithmic axis would show chance.
    gaps = [gap(each["lower"], each["upper"]) for each in bounds]
    known = [at for at, (value, low, _) in enumerate(gaps) if low > 0]
    bars(right, [x[at] for at in known], [gaps[at] for at in known], label, k)
ticks = [each["num_particles"] for each in record["before"]["bounds"] if each["method"] == "iwae"]
for axes in (left, right):
    axes.set_xscale("log")
    axes.set_xticks(ticks, ticks)
    axes.minorticks_off()
    axes.set_xlabel("number of particles N")
right.set(yscale="log", ylabel="upper − lower (nats)", title="the gap")
left.set(ylabel="bounds on log Z (nats)", title="lower bounds rise, upper bounds fall")
left.legend(frameon=False, fontsize="small")
