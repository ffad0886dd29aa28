"""KL(σ‖q) of masked decoding, of the automaton's table and of the twist, by enumeration."""

from figures.explain_common import look, plt, read

record = read("benchmarks/masking.json")
rows = [(model, row) for model, found in record.items() for row in found]
ways = {"masked": "masked decoding", "table": "the automaton’s table", "twist": "the twist"}
figure, axes = plt.subplots(figsize=(8.4, 3.8), layout="constrained")
for k, (way, label) in enumerate(ways.items()):
    # Below a thousandth of a nat nothing is to be told apart.
    x = [max(row[way]["kl_target_q"], 1e-3) for _, row in rows]
    axes.plot(x, range(len(rows)), label=label, **{**look(k), "linestyle": ""})
names = [f"{row['prompt'].replace('Once upon a time, there', '… there')} …  ({model})" for model, row in rows]
axes.set_yticks(range(len(rows)), names)
axes.invert_yaxis()
axes.set(xscale="log", xlim=(7e-4, 10), xlabel="KL(σ‖q) (nats; 0.001 stands for less)")
figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize="small")
