"""Both bounds on log Z of the demo on SmolLM2, before and after training."""

from figures.explain_common import plt, read, sandwiches

_, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
sandwiches(axes, read("start-demo-smollm2"))
