"""Proximal policy optimisation of the proposal: the rival from reinforcement learning."""

import torch
from torch import Tensor

from twistlm.training.losses import end, loss
from twistlm.training.scored import Scored

# The probability ratio may move so far from 1 before its gradient is cut (Schulman et al. 2017).
CLIP = 0.2


@loss("ppo", sources=("drawn",), normaliser=True, on_policy=True, inner_steps=4)
def ppo(drawn: Scored) -> Tensor:
    """Clipped policy gradient of E_q[log φ − log q / p₀] = log Z − KL(q‖σ); the policy is the twist-induced proposal.

    Each token costs log q − log p₀ as drawn, the end pays log φ. A token's advantage is what is still to come from it
    on (the reward-to-go), minus the batch's mean at that step, in units of their standard deviation; there is no
    critic. Four optimiser steps on each batch (Schulman et al. 2017; Ziegler et al. 2019 for the penalty). φ = 0 counts
    as e^−40.

    Args:
        drawn: equal weights [B, T], drawn from the proposal as it was before the first of the steps.
    """
    mask, weights, ratio = drawn.mask, drawn.weights, drawn.ratio
    cost = (drawn.log_q - drawn.log_p).to(drawn.log_psi.dtype) * mask
    to_go = end(drawn) - cost.flip(-1).cumsum(-1).flip(-1)
    active = (weights * mask).sum(0).clamp_min(1e-12)
    advantage = (to_go - (weights * mask * to_go).sum(0) / active) * mask
    advantage = advantage / ((weights * advantage.square()).sum() / active.sum()).sqrt().clamp_min(1e-8)
    clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
    surrogate = torch.minimum(ratio * advantage, clipped * advantage)
    return -(weights * mask * surrogate).sum(0).mean()
