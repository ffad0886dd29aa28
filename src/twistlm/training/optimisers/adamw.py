"""Two moments of every number."""

from collections.abc import Sequence

import torch
from torch import Tensor

from twistlm.training.config import TrainingConfig
from twistlm.training.optimisers import optimiser


def _keeps(parameter: Tensor) -> dict[str, Tensor]:
    return {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}


@optimiser("adamw", keeps=_keeps)
def adamw(parameters: Sequence[Tensor], config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019): remembers two numbers for each that is trained."""
    return torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )
