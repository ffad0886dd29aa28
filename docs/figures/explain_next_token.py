"""p₀ and q of the next token, after two beginnings of a text."""

from figures.explain_common import COLOURS, plt, read

record = read("explain-smc")
figure, panels = plt.subplots(1, 2, figsize=(8.4, 4), layout="constrained")
for axes, following in zip(panels, record["next"], strict=True):
    places = range(len(following["pieces"]))
    axes.barh([at - 0.2 for at in places], following["p"], height=0.38, color="0.6", label="p₀: the model")
    axes.barh(
        [at + 0.2 for at in places], following["q"], height=0.38, color=COLOURS[0], label="q ∝ p₀ψ: with the twist"
    )
    axes.set_yticks(list(places), [piece.strip() for piece in following["pieces"]])
    axes.invert_yaxis()
    axes.set(xlabel="probability of the next token", title=f"“{record['prompt']}{following['prefix']} …”")
panels[0].legend(frameon=False, fontsize="small", loc="center right")
