"""A twist that is a table: the exact one of a tabular model, or one to be learned."""

import torch
from torch import Tensor, nn

from twistlm.core.kernels import normaliser
from twistlm.core.kernels.entries import entries
from twistlm.twists.base import Twist


class TabularHead(nn.Module):
    """log ψ(prefix, v) as a table with one parameter each: the twist without any approximation error."""

    def __init__(self, log_psi: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(log_psi)
        self.shrinkage: Tensor
        self.register_buffer("shrinkage", torch.ones((), dtype=log_psi.dtype))

    def forward(self, features: Tensor) -> Tensor:
        """Rows of the table [..., V]."""
        return self.shrinkage * entries(self.table, features)

    def gather(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Entries of the table [...]."""
        return self.shrinkage * entries(self.table.flatten(), features * self.table.shape[1] + tokens)

    def start_at(self, log_psi: float) -> None:
        """Every entry is raised by this."""
        with torch.no_grad():
            self.table.add_(log_psi)

    def log_normaliser(self, features: Tensor, logits: normaliser.Logits, rows: int) -> Tensor:
        """log Σ_v p₀ψ [n]."""
        return normaliser.of_head(self, features, logits, rows)

    @staticmethod
    def twist(log_psi: Tensor) -> Twist:
        """A twist whose table is `log_psi` [prefixes, V]."""
        head = TabularHead(log_psi)
        return Twist(head, head)
