"""Both bounds on log Z, and their gap, against the number of particles."""

import math

from figures.explain_common import bars, by_particles, plt, read, sandwiches


def gap(lower: list[float], upper: list[float]) -> list[float]:
    """upper − lower with 95 %, of two means that are independent."""
    value = upper[0] - lower[0]
    half = math.hypot((upper[2] - upper[1]) / 2, (lower[2] - lower[1]) / 2)
    return [value, value - half, value + half]


record = read("explain-bounds")
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 4.2), layout="constrained")
for k, (label, (x, bounds)) in enumerate(sandwiches(left, record).items()):
    # What is less than its own error is left out: a logarithmic axis would show chance.
    gaps = [gap(each["lower"], each["upper"]) for each in bounds]
    known = [at for at, (value, low, _) in enumerate(gaps) if low > 0]
    bars(right, [x[at] for at in known], [gaps[at] for at in known], label, k)
by_particles(right, record)
right.set(yscale="log", ylabel="upper − lower (nats)", title="the gap")
left.set_title("lower bounds rise, upper bounds fall")
