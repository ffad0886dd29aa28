"""One step of an optimiser on a twist's parameters, the same for whoever fits one."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from twistlm.core.processes import ALONE, Processes


def step(
    optimiser: torch.optim.Optimizer,
    loss: Tensor,
    parameters: Sequence[Tensor],
    max_grad_norm: float = math.inf,
    processes: Processes = ALONE,
) -> float:
    """Move the parameters down the loss's gradient.

    Args:
        optimiser: of these parameters.
        loss: a scalar.
        parameters: those that are trained.
        max_grad_norm: the gradient is clipped to this norm.
        processes: of whose gradients the sum is taken.

    Returns:
        The gradient's norm before clipping.
    """
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    processes.sum_gradients(parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimiser.step()
    # The fused step leaves version counters alone, by which twists notice that what they derived is out of date.
    torch.autograd.graph.increment_version(parameters)
    # As large as the twist, and of no use while the next batch is drawn.
    optimiser.zero_grad(set_to_none=True)
    return float(norm)
