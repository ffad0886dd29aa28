"""Soft reinforcement learning: twists as soft values that are consistent along every path."""

import torch
from torch import Tensor

from twistlm.training.losses import end, loss
from twistlm.training.scored import Scored


@loss("rl", sources=("drawn",), normaliser=True, scale=True)
def rl(drawn: Scored) -> Tensor:
    """Squared inconsistency of log ψ_t with its own expectation one step later, on any sequences.

    log ψ_t(s_1:t) should be log Σ_v p₀(v | s_1:t) ψ_{t+1}(s_1:t, v), and log φ(s) at the end; the right-hand side is
    held fixed (Zhao et al. 2024, section 4.2, appendix C.1.1: soft Q-learning, path consistency of length one). φ = 0
    counts as e^−40.

    Args:
        drawn: equal weights [B, T].
    """
    assert drawn.log_normaliser is not None
    error = following(drawn, drawn.log_normaliser.detach()) - drawn.log_psi
    return (drawn.weights * drawn.mask * error.square()).sum(0).mean()


def following(scored: Scored, values: Tensor) -> Tensor:
    """`values` [B, T] one step later, and log φ after the last random choice."""
    goes_on = torch.nn.functional.pad(scored.mask, (0, 1))[:, 1:].bool()
    return torch.where(goes_on, torch.nn.functional.pad(values, (0, 1))[:, 1:], end(scored))
