"""FUDGE: twists as classifiers of prefixes, by what becomes of them under the base model."""

import torch
from torch import Tensor

from twistlm.training.losses import loss
from twistlm.training.scored import Scored


@loss("fudge", sources=("labelled",), probability=True, scale=True)
def fudge(labelled: Scored) -> Tensor:
    """Cross-entropy of ψ_t(s_1:t), a probability, with φ(s) as the label of every prefix (Yang and Klein, 2021).

    −E_p₀[φ log ψ_t + (1 − φ) log(1 − ψ_t)], the mean over t; least at ψ_t = E_p₀[φ | s_1:t] (Zhao et al. 2024,
    appendix C.4). Needs φ ≤ 1.

    Args:
        labelled: weights [B, T] towards p₀ of whole sequences, or prefixes with a label of their own each.
    """
    label = labelled.labels.exp()
    # ψ = 1 counts as the number before.
    other = torch.log(-torch.expm1(labelled.log_psi.clamp_max(-torch.finfo(labelled.log_psi.dtype).eps)))
    return -(labelled.weights * (label * labelled.log_psi + (1 - label) * other)).sum(0).mean()
