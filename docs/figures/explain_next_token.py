"""p₀ and q of the next token, after the beginning of a text."""

from figures.explain_common import COLOURS, plt, read

record = read("explain-smc")
following = record["next"]
places = range(len(following["pieces"]))
figure, axes = plt.subplots(figsize=(7.5, 0.28 * len(places) + 1.2), layout="constrained")
axes.barh([at + 0.2 for at in places], following["p"], height=0.38, color="0.6", label="p₀: the model")
axes.barh([at - 0.2 for at in places], following["q"], height=0.38, color=COLOURS[0], label="q ∝ p₀ψ: with the twist")
axes.set_yticks(list(places), [repr(piece)[1:-1] for piece in following["pieces"]])
axes.set(xlabel="probability of the next token", title=f"after “{record['prompt']}{following['prefix']}”")
axes.legend(frameon=False)
