"""The gap of log Ẑ and its spread against N / exp(KL(σ‖q)), where log Z is a sum."""

from math import exp

from figures.explain_common import COLOURS, plt, read

record = read("choose-particles")
figure, panels = plt.subplots(1, 2, figsize=(8.4, 4.2), layout="constrained")
for world in record["worlds"]:
    if (world["potential"], world["proposal"]) == ("two-valued", "base"):
        # φ is 1 or 1e-16, so that log Ẑ is −37 or so until an event is seen: the page says what becomes of it.
        continue
    x = [n / exp(world["kl_target_q"]) for n in record["particles"]]
    colour = COLOURS[0] if world["proposal"] == "base" else COLOURS[1]
    for axes, name in zip(panels, ("gap", "spread"), strict=True):
        axes.plot(x, world[name], color=colour, linewidth=0.9, alpha=0.8)
for axes, title in zip(panels, ("log Z − mean of log Ẑ", "standard deviation of log Ẑ"), strict=True):
    axes.axvline(1, color="0.5", linewidth=0.8, linestyle="--")
    axes.set(xscale="log", yscale="log", xlim=(0.01, 1000), ylim=(0.01, 10))
    axes.set(xlabel="N / exp(KL(σ‖q))", ylabel="nats", title=title)
for k, label in enumerate(("proposal: the base model", "proposal: a trained one")):
    panels[0].plot([], [], color=COLOURS[k], label=label)
panels[0].legend(frameon=False, fontsize="small", loc="lower left")
