"""Exact draws from categorical distributions as large as a vocabulary.

`torch.multinomial` over V = 50,257 costs as much as the language model that made the logits. Here the
unnormalised probabilities are exponentiated once into rows of blocks, and each draw inverts the distribution
function in two levels: over the float64 sums of the blocks, then inside one block. One pass over [U, V], then
O(√V) per draw, and several draws from one row (particles that share a prefix) pay the pass once.

Exactness: block sums add 256 float32 terms pairwise, everything above and the cumulative sum inside a block are
float64, so a token of probability 1e-9 keeps its probability to a relative error of about 1e-6. A plain float32
cumulative sum over V would lose it altogether.
"""

import threading
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 256
# Rows are processed in groups so that the passes over one group hit a core's own cache: up to a fifth less time at
# V = 4,096 than with four times as many (a Xeon of 2 MB), and no difference at V = 49,152.
CACHE_ELEMENTS = 400_000


class Scratch(threading.local):
    """Memory that one table after another uses, as large as the largest has been; each thread has its own.

    Taking tens of megabytes from the system anew at every step costs as much as filling them.
    """

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def __reduce__(self) -> tuple[type["Scratch"], tuple[()]]:
        """A copy, here or in another process, is empty."""
        return Scratch, ()

    def take(self, rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Uninitialised [rows, columns]. What was taken before is void."""
        memory, needed = self._memory, rows * columns
        if memory is None or memory.numel() < needed or memory.device != device or memory.dtype != dtype:
            memory = self._memory = torch.empty(needed, device=device, dtype=dtype)
        return memory[:needed].view(rows, columns)


@dataclass(frozen=True)
class CategoricalTable:
    """U categorical distributions over K outcomes, ready to be drawn from.

    Attributes:
        values: exp(logit − row maximum) [U, blocks, BLOCK], float32 (float64 if the logits are), zero in the padding.
        block_sums: sums of `values` over the last axis, float64 [U, blocks].
        log_total: log Σ exp(logit), float64 [U]; −inf where the whole row is −inf.
        log_total_first: the same of the first of several terms alone.
        size: K.
    """

    values: Tensor
    block_sums: Tensor
    log_total: Tensor
    log_total_first: Tensor
    size: int

    @staticmethod
    def from_logits(*terms: Tensor, scratch: Scratch | None = None) -> "CategoricalTable":
        """Tabulate the distributions ∝ exp(Σ terms).

        Args:
            terms: [U, K] each, of any floating type; they are added in float32 at least.
            scratch: where to hold the values. The table is void once it serves another.
        """
        rows, size = terms[0].shape
        blocks = -(-size // BLOCK)
        device = terms[0].device
        dtype = torch.float64 if terms[0].dtype == torch.float64 else torch.float32
        values = (scratch or Scratch()).take(rows, blocks * BLOCK, device, dtype)
        values[:, size:] = 0.0
        block_sums = torch.empty(rows, blocks, dtype=torch.float64, device=device)
        # A row that is all −inf has no maximum to subtract: exp(−inf − 0) = 0 keeps it empty, not NaN.
        shift = torch.empty(rows, dtype=dtype, device=device)
        first = torch.empty(rows, dtype=torch.float64, device=device)
        group = max(1, CACHE_ELEMENTS // size) if device.type == "cpu" else max(1, rows)
        for at in range(0, rows, group):
            part = slice(at, at + group)
            head = values[part, :size]
            head.copy_(terms[0][part])
            if len(terms) > 1:
                first[part] = torch.logsumexp(head, -1)
            for term in terms[1:]:
                head.add_(term[part])
            top = head.amax(-1)
            shift[part] = torch.where(top.isfinite(), top, 0.0)
            head.sub_(shift[part].unsqueeze(-1)).exp_()
            block_sums[part] = values[part].view(-1, blocks, BLOCK).sum(-1)
        log_total = block_sums.sum(-1).log() + shift.double()
        return CategoricalTable(
            values.view(rows, blocks, BLOCK), block_sums, log_total, first if len(terms) > 1 else log_total, size
        )

    def probabilities(self) -> Tensor:
        """The normalised probabilities, float64 [U, K]: for tests and small K only."""
        flat = self.values.flatten(1)[:, : self.size].double()
        return flat / flat.sum(-1, keepdim=True)

    @property
    def mode(self) -> Tensor:
        """The likeliest outcome of each row [U].

        By blocks: torch finds the place of a maximum ten times as slowly as the maximum.
        """
        block = self.values.amax(-1).argmax(-1)
        inside = self.values[torch.arange(len(block), device=block.device), block]
        return block * BLOCK + inside.argmax(-1)

    def invert(self, uniforms: Tensor, rows: Tensor) -> Tensor:
        """Outcome [B] of row `rows` [B] whose distribution function first exceeds `uniforms` [B] in [0, 1).

        Never an outcome of probability zero, unless the whole row is zero (then outcome 0).
        """
        block, residual = _first_exceeding(self.block_sums[rows], uniforms.double())
        inside = self.values[rows, block].double()
        # The residual is uniform on [0, block total) up to rounding; rescaled, it cannot leave the block.
        index, _ = _first_exceeding(inside, residual)
        return block * BLOCK + index


def _first_exceeding(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """First index [B] where cumsum(weights [B, n]) > u·total, and where in that cell u fell, in [0, 1)."""
    cumulative = weights.cumsum(-1)
    threshold = uniforms.unsqueeze(-1) * cumulative[:, -1:]
    # u·total can round up to total: the last cell with weight is the right answer then.
    last = (weights > 0).long().mul(torch.arange(1, weights.shape[-1] + 1, device=weights.device)).amax(-1) - 1
    index = torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)
    index = torch.minimum(index, last.clamp_min(0))
    cell = weights.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    below = cumulative.gather(-1, index.unsqueeze(-1)).squeeze(-1) - cell
    residual = (threshold.squeeze(-1) - below) / cell.clamp_min(torch.finfo(torch.float64).tiny)
    return index, residual.clamp(0.0, 1.0 - 2**-53)
