"""How often each statement of a certificate holds the truth, and how often KL(σ‖q) has two ends."""

from figures.explain_common import COLOURS, look, plt, read

cells = read("benchmarks/coverage.json")
statements = list(cells[0]["statements"])
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 4.2), layout="constrained")
for row, name in enumerate(statements):
    made = [cell["statements"][name] for cell in cells if cell["statements"][name]["made"] >= 200]
    shares = [each["held"] / each["made"] for each in made]
    left.scatter(shares, [row + 0.3 * (k / len(shares) - 0.5) for k in range(len(shares))], s=8, color=COLOURS[0],
                 alpha=0.6)  # fmt: skip
left.axvline(0.95, color="0.5", linewidth=0.8, linestyle="--")
left.set_yticks(range(len(statements)), statements)
left.invert_yaxis()
left.set(xlim=(0.93, 1.002), xlabel="share of 2,000 certificates that hold the truth", title="each point: one cell")
levels = sorted({cell["level"] for cell in cells}, reverse=True)
for k, draws in enumerate(("few", "default")):
    for j, (what, key) in enumerate((("made at all", "made"), ("with two ends", "two_sided"))):
        shares = []
        for level in levels:
            of = [
                cell for cell in cells
                if (cell["draws"], cell["level"], cell["proposal"]) == (draws, level, "trained")
            ]  # fmt: skip
            shares.append(sum(c["statements"]["KL(σ‖q)"][key] for c in of) / sum(c["repeats"] for c in of))
        count = {"few": "256", "default": "4,096"}[draws]
        right.plot(range(len(levels)), shares, label=f"{count} base draws: {what}", **look(2 * k + j))
right.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
right.set(xlabel="Z", ylabel="share of certificates", title="KL(σ‖q) of a trained sampler")
figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=4, frameon=False, fontsize="small")
