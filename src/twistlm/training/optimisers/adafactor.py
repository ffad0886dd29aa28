"""Second moments of rows and of columns in place of those of every number, and no first moment."""

from collections.abc import Sequence

import torch
from torch import Tensor

from twistlm.training.config import TrainingConfig
from twistlm.training.optimisers import optimiser

# A step is as long as the learning rate times the root mean square of what it moves, but at least times this. With 1
# the learning rate means what it does for AdamW; with the usual 1e-3 a head that starts at zero hardly moves.
LEAST_SCALE = 1.0


def _keeps(parameter: Tensor) -> dict[str, Tensor]:
    if parameter.dim() < 2:
        return {"step": torch.zeros(()), "variance": parameter}
    return {"step": torch.zeros(()), "row_var": parameter[..., :1], "col_var": parameter[..., :1, :]}


@optimiser("adafactor", keeps=_keeps)
def adafactor(parameters: Sequence[Tensor], config: TrainingConfig) -> torch.optim.Optimizer:
    """Adafactor (Shazeer and Stern 2018): remembers next to nothing, for twists with a network of their own."""
    return torch.optim.Adafactor(
        parameters,
        lr=config.learning_rate,
        eps=(None, LEAST_SCALE),
        weight_decay=config.weight_decay,
        # One parameter after the other: what is made on the way is as large as the largest, not as all of them.
        foreach=False,
    )
