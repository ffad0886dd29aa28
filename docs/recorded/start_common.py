"""What the scripts of Start and the guides share: what model, target and sampler draw, as histograms over a score."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from twistlm import Run
from twistlm.core.rng import Rng


def drawn(run: Run, scores: Sequence[float], power: float, draws: int, seed: int) -> dict[str, Any]:
    """Shares of texts between `scores`, under p₀, under σ (the same draws by their weights) and under q.

    Args:
        run: its φ is the score to the power `power`.
        scores: edges of the bins; what is beyond the ends is in the first and the last.
        power: of the score.
        draws: how many of q.
        seed: of these.
    """
    assert run.collection is not None
    base = run.collection.draws.log_phi
    proposed = run.sampler().draw(Rng(seed, ("drawn",)), run.target.cases, draws).log_phi
    edges = torch.tensor(scores, dtype=torch.float64)

    def shares(log_phi: Tensor, weights: Tensor) -> list[float]:
        at = (log_phi.double() / power).exp().clamp(scores[0], scores[-1])
        found: list[float] = torch.histogram(at, edges, weight=weights.double()).hist.tolist()
        return found

    equal, by_phi = torch.ones_like(base) / len(base), base.softmax(0)
    return {
        "num_base": len(base), "num_q": draws,
        "base": shares(base, equal), "target": shares(base, by_phi),
        "q": shares(proposed, torch.ones_like(proposed) / draws),
    }  # fmt: skip
