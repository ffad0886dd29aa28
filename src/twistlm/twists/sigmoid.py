"""Twists that are probabilities: ψ = sigmoid(x), with x whatever another twist calls its log ψ."""

import math
from dataclasses import replace

from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from twistlm.core.kernels import normaliser
from twistlm.twists.base import Head, Twist


class ProbabilityHead(nn.Module):
    """log ψ = log sigmoid(x). A twist that starts at x = 0 starts at ψ = ½ everywhere, which is q = p₀ as well."""

    def __init__(self, inner: Head) -> None:
        super().__init__()
        self.inner = inner

    @property
    def shrinkage(self) -> Tensor:
        """Multiplies x; 0 is a constant ψ."""
        return self.inner.shrinkage

    def forward(self, features: Tensor) -> Tensor:
        """log ψ of every token [..., V], not above 0."""
        return logsigmoid(self.inner(features))

    def gather(self, features: Tensor, tokens: Tensor) -> Tensor:
        """log ψ of the chosen tokens [...]."""
        return logsigmoid(self.inner.gather(features, tokens))

    def start_at(self, log_psi: float) -> None:
        """x = log ψ − log (1 − ψ). At most 0.9: from near 1 the logistic function would not come back."""
        log_psi = min(log_psi, math.log(0.9))
        self.inner.start_at(log_psi - math.log(-math.expm1(log_psi)))

    def log_normaliser(self, features: Tensor, logits: normaliser.Logits, rows: int) -> Tensor:
        """log Σ_v p₀ψ [n] of features [n, d], with gradient."""
        return normaliser.of_head(self, features, logits, rows)


def probability(twist: Twist) -> Twist:
    """`twist` with its log ψ read as a logit; parameters and their names stay as they are."""
    return replace(twist, head=ProbabilityHead(twist.head))
