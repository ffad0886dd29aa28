"""What kinds of twist cost: times and memory of `make bench` on GPT-2's shape."""

from figures.explain_common import COLOURS, plt, read

rows = {
    (row["name"], row["kind"]): row
    for row in read("benchmarks/results.json")["rows"]
    if row["model"] == "gpt2" and row["dtype"] == "fp32"
}
twists = ("low_rank", "tied", "mlp", "backbone")
figure, (time, memory) = plt.subplots(1, 2, figsize=(8.4, 3.8), layout="constrained")
for k, (task, label) in enumerate((("smc", "SMC"), ("ctl", "CTL update"), ("dpg", "DPG update"))):
    for at, twist in enumerate(twists):
        name, place = f"{task}_{twist}_100x20", at + 0.26 * (k - 1)
        if (name, "time") in rows:
            time.bar(place, rows[name, "time"]["ratio"], 0.24, color=COLOURS[k], label=label if at == 0 else None)
        if (name, "memory") in rows:
            memory.bar(place, rows[name, "memory"]["peak_mb"], 0.24, color=COLOURS[k])
time.axhline(1, color="0.5", linewidth=0.8, linestyle="--")
for axes in (time, memory):
    axes.set_xticks(range(len(twists)), twists)
time.set(ylabel="time ÷ generate’s", title="time of 100 × 20 tokens")
memory.set(ylabel="MB above the model", title="peak memory")
time.legend(frameon=False, fontsize="small")
