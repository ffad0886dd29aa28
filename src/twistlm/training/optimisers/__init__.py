"""Optimisers: what moves a twist's parameters down a gradient, and what it remembers of each. One small file each."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from twistlm.core.registry import lookup, register
from twistlm.training.config import TrainingConfig

Build = Callable[[Sequence[Tensor], TrainingConfig], torch.optim.Optimizer]
# What is kept of a parameter, by name, each as a tensor of the same shape, type and readiness for gradients.
Keeps = Callable[[Tensor], Mapping[str, Tensor]]


def optimiser(name: str, *, keeps: Keeps) -> Callable[[Build], Build]:
    """Decorator: make the function available as the optimiser `name`.

    Args:
        name: the name on the command line.
        keeps: what its state has of a parameter after a step; a checkpoint that has anything else is refused.
    """
    return register("optimiser", name, keeps=keeps)


def build(parameters: Sequence[Tensor], config: TrainingConfig) -> torch.optim.Optimizer:
    """The optimiser that the config names, of these parameters.

    Raises:
        ConfigError: there is none of that name.
    """
    make: Build = lookup("optimiser", config.optimiser).value
    return make(parameters, config)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Let its next steps be of this learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def kept(name: str, parameters: Sequence[Tensor]) -> list[Mapping[str, Tensor]]:
    """What the optimiser of that name keeps of each of the parameters, as tensors of the same shape and type.

    Raises:
        ConfigError: there is none of that name.
    """
    keeps: Keeps = lookup("optimiser", name).options["keeps"]
    return [keeps(parameter) for parameter in parameters]
