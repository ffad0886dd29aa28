"""Nested variational inference: every intermediate target is one step away from the next."""

import torch
from torch import Tensor

from twistlm.training.losses import end, loss
from twistlm.training.scored import Scored


@loss("nvi", sources=("intermediate",), normaliser=True)
def nvi(intermediate: Scored) -> Tensor:
    """Σ_t KL(π_t q_{t+1} ‖ π_{t+1}) / T, with the target itself after the last step (Zimmermann et al. 2021).

    The mean over targets (by what they count), each of which has a normalising constant of its own. Each term is
    log E_π_t[w] − E_π_t[log w]
    with the incremental weight w = Σ_v p₀ψ_{t+1} / ψ_t, and φ / ψ_T at the end: zero just where that weight does not
    vary, which is what SMC wants of its twists. The gradient flows through π_t too. φ = 0 counts as e^−40.

    Args:
        intermediate: weights [B, T] towards π_t.
    """
    assert intermediate.log_normaliser is not None
    log_psi, mask = intermediate.log_psi, intermediate.mask
    # A finished sequence makes no step: its weight is 1 until φ comes in.
    steps = torch.where(mask[:, 1:].bool(), intermediate.log_normaliser[:, 1:] - log_psi[:, :-1], 0.0)
    log_w = torch.cat([steps, end(intermediate) - log_psi[:, -1:]], -1)
    # Weights come without gradient; this factor is 1 and has the gradient of π_t's own.
    unnormalised = intermediate.weights * (log_psi - log_psi.detach()).exp()
    by_target = (intermediate.num_targets, -1)
    unnormalised, log_w = unnormalised.unflatten(0, by_target), log_w.unflatten(0, by_target)
    weights = unnormalised / unnormalised.sum(1, keepdim=True)
    top = log_w.detach().amax(1, keepdim=True)
    log_mean = (weights * (log_w - top).exp()).sum(1).log() + top.squeeze(1)
    divergences: Tensor = log_mean - (weights * log_w).sum(1)
    if intermediate.target_weights is not None:
        divergences = divergences * intermediate.target_weights.to(divergences).unsqueeze(-1)
    return divergences.mean()
