"""Soft reinforcement learning: twists as soft values that are consistent along every path."""

import torch
from torch import Tensor

from twistlm.losses import loss
from twistlm.types import Scored

# log φ of an impossible text is −∞, at a finite distance from which no twist would ever be.
LOWEST = -40.0


@loss("rl", sources=("drawn",), normaliser=True)
def rl(drawn: Scored) -> Tensor:
    """Squared inconsistency of log ψ_t with its own expectation one step later, on any sequences.

    log ψ_t(s_1:t) should be log Σ_v p₀(v | s_1:t) ψ_{t+1}(s_1:t, v), and log φ(s) at the end; the right-hand side is
    held fixed (Zhao et al. 2024, section 4.2, equation 24: soft Q-learning, path consistency of length one). φ = 0
    counts as e^−40.

    Args:
        drawn: equal weights [B].
    """
    assert drawn.log_normaliser is not None
    goes_on = torch.nn.functional.pad(drawn.mask, (0, 1))[:, 1:].bool()
    end = drawn.log_phi.clamp_min(LOWEST).to(drawn.log_psi.dtype).unsqueeze(-1)
    later = torch.nn.functional.pad(drawn.log_normaliser.detach(), (0, 1))[:, 1:]
    error = torch.where(goes_on, later, end) - drawn.log_psi
    return (drawn.weights.unsqueeze(-1) * drawn.mask * error.square()).sum(0).mean()
