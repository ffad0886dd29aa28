"""What base model, target and sampler draw, over a score."""

from typing import Any

from figures.explain_common import COLOURS


def drawn(axes: Any, found: dict[str, Any], edges: list[float]) -> None:
    """Three histograms of one target."""
    axes.stairs(found["base"], edges, fill=True, color="0.82", label=f"base model p₀: {found['num_base']:,} draws")
    axes.stairs(found["target"], edges, color=COLOURS[2], linewidth=2, label="target σ: the same draws, weighted by φ")
    axes.stairs(found["q"], edges, color=COLOURS[1], linewidth=1.5, linestyle="--",
                label=f"sampler q with its twist: {found['num_q']:,} draws")  # fmt: skip
