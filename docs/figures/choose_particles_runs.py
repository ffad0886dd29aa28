"""The spread of log Ẑ against N of four trained runs, with and without resampling."""

from figures.explain_common import look, plt, read

RUNS = ("demo", "sentiment", "toxicity-beta-5", "infilling-2-1")

record = read("benchmarks/informed.json")
ways = {"iwae": "never resampling", "twist": "SMC by the twist alone", "informed": "SMC, informed"}
figure, panels = plt.subplots(1, 4, figsize=(8.4, 3), sharey=True, layout="constrained")
for axes, name in zip(panels, RUNS, strict=True):
    run = record[name]
    counts = [int(n) for n in run if n.isdigit()]
    for k, (way, label) in enumerate(ways.items()):
        axes.plot(counts, [run[str(n)][way]["sd"] for n in counts], label=label, **look(k))
    axes.axhline(1, color="0.6", linewidth=0.8, linestyle="--")
    axes.set(xscale="log", yscale="log", ylim=(0.1, 15), xlabel="particles N", title=name)
    axes.set_xticks(counts, counts)
    axes.minorticks_off()
panels[0].set_ylabel("standard deviation of log Ẑ (nats)")
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
