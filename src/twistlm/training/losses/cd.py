"""Controlled decoding: twists as expected log potentials."""

import torch
from torch import Tensor

from twistlm.training.losses import loss
from twistlm.training.losses.rl import following
from twistlm.training.scored import Scored


@loss("cd", sources=("base",), scale=True)
def cd(base: Scored) -> Tensor:
    """Squared error of log ψ_t against log ψ_{t+1} of what the base model says next, and against log φ at the end.

    The value function of controlled decoding (Mudgal et al. 2024), with the draw standing for the expectation over
    the next token: least at log ψ_t = E_p₀[log φ | s_1:t], which by Jensen is below the twist that SMC wants. The
    later value is held fixed. φ = 0 counts as e^−40.

    Args:
        base: weights [B, T] towards p₀.
    """
    error = following(base, base.log_psi.detach()) - base.log_psi
    # A step is drawn as often as the prefix that it leads to; the last weight stands for the step to φ.
    weights = torch.cat([base.weights[:, 1:], base.weights[:, -1:]], -1)
    return (weights * base.mask * error.square()).sum(0).mean()
