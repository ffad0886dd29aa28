"""Rows of a cache that go on from different prompts, each of which is kept and read once for all of its rows.

The rest of each prompt (what comes after all prompts have parted) is one entry of a padded batch [G, heads, P, d]. A
query of a row belongs to its prompt's entry, so queries are put side by side by prompt, [G, n] of them with n the most
rows that any prompt has, and one batched product serves all. Nothing of a prompt is copied for its rows, and that
lengths differ costs the padding alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """Attention over some columns: the highest score [..., 1], Σ exp(score − highest), and that sum of values."""

    highest: Tensor
    total: Tensor
    values: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> "Mixture":
        """All three through `function`."""
        return Mixture(function(self.highest), function(self.total), function(self.values))


@dataclass(frozen=True)
class Groups:
    """Which prompt each row goes on from, for all layers of a cache.

    Attributes:
        lengths: of the rests of all prompts, by batch: one tuple for each padded batch.
        owner: the number of each row's prompt [U], counted through all batches.
        biases: −inf [G, 1, P] at a batch's padding, 0 elsewhere; None for a batch without padding.
        slots: of each batch the rows of its prompts [G, n]; any row where a prompt has fewer; None without rows.
        places: where each row stands among the slots of all batches [U].
    """

    lengths: tuple[tuple[int, ...], ...]
    owner: Tensor
    biases: tuple[Tensor | None, ...]
    slots: tuple[Tensor | None, ...]
    places: Tensor

    @staticmethod
    def of(lengths: Sequence[tuple[int, ...]], owner: Tensor) -> "Groups":
        """Rows [U] that have just begun."""
        biases = tuple(_bias(each) for each in lengths)
        return Groups(tuple(lengths), owner, biases, *_arranged(lengths, owner))

    def after(self, parents: Tensor) -> "Groups":
        """The same for rows `parents` [U'], with repetition."""
        owner = self.owner[parents]
        return Groups(self.lengths, owner, self.biases, *_arranged(self.lengths, owner))

    @property
    def longest(self) -> int:
        """Tokens of the longest rest."""
        return max(max(each) for each in self.lengths)

    @property
    def padding(self) -> Tensor:
        """How many tokens each row's rest is shorter than the longest [U]."""
        flat = torch.tensor([length for each in self.lengths for length in each])
        return self.longest - flat[self.owner]

    def attend(self, query: Tensor, rests: Sequence[tuple[Tensor, Tensor]]) -> Mixture:
        """Attention of queries [U, heads, group, d] over their prompts' rests, of each batch [G · heads, P, d]."""
        _, heads, group, width = query.shape
        flat, parts = query.flatten(1), []
        for slots, bias, (keys, values) in zip(self.slots, self.biases, rests, strict=True):
            if slots is None:
                continue
            count, n = slots.shape
            asked = flat.index_select(0, slots.flatten()).view(count, n, heads, group, width)
            asked = asked.transpose(1, 2).reshape(count * heads, n * group, width)
            scores = torch.bmm(asked, keys.transpose(1, 2))
            if bias is not None:
                scores.view(count, heads * n * group, -1).add_(bias)
            found = mixture(scores, values)
            joined = torch.cat([found.values, found.highest, found.total], -1).view(count, heads, n, group, width + 2)
            parts.append(joined.transpose(1, 2).reshape(count * n, -1))
        rows = torch.cat(parts).index_select(0, self.places).view(-1, heads, group, width + 2)
        return Mixture(rows[..., width : width + 1], rows[..., width + 1 :], rows[..., :width])


def mixture(scores: Tensor, values: Tensor) -> Mixture:
    """Attention by scores [G, Q, L] over values [G, L, d]: [G, Q, 1], [G, Q, 1] and [G, Q, d]."""
    highest = scores.amax(-1, keepdim=True)
    weights = (scores - highest).exp_()
    return Mixture(highest, weights.sum(-1, keepdim=True), torch.bmm(weights, values))


def merged(parts: Sequence[Mixture]) -> Tensor:
    """Attention over the columns of all parts [..., d]."""
    highest = torch.stack([part.highest for part in parts]).amax(0)
    scales = [(part.highest - highest).exp_() for part in parts]
    total, values = scales[0] * parts[0].total, scales[0] * parts[0].values
    for scale, part in zip(scales[1:], parts[1:], strict=True):
        total.addcmul_(scale, part.total)
        values.addcmul_(scale, part.values)
    return values / total


def _bias(lengths: tuple[int, ...]) -> Tensor | None:
    longest = max(lengths)
    if min(lengths) == longest:
        return None
    beyond = torch.arange(longest) >= torch.tensor(lengths).unsqueeze(-1)
    return torch.zeros(beyond.shape).masked_fill_(beyond, -torch.inf).unsqueeze(1)


def _arranged(lengths: Sequence[tuple[int, ...]], owner: Tensor) -> tuple[tuple[Tensor | None, ...], Tensor]:
    """Slots of each batch, and places [U], of rows by their prompts."""
    counts = torch.bincount(owner, minlength=sum(len(each) for each in lengths))
    order = owner.argsort(stable=True)
    rank = torch.empty_like(owner)
    rank[order] = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner[order]]
    slots: list[Tensor | None] = []
    places, first, taken = torch.empty_like(owner), 0, 0
    for each in lengths:
        count = len(each)
        n = int(counts[first : first + count].max())
        if n == 0:
            slots.append(None)
        else:
            rows = ((owner >= first) & (owner < first + count)).nonzero().squeeze(-1)
            within = (owner[rows] - first) * n + rank[rows]
            # Where a prompt has fewer rows the first one asks in vain.
            slots.append(owner.new_zeros(count * n).index_copy_(0, within, rows).view(count, n))
            places[rows] = taken + within
            taken += count * n
        first += count
    return tuple(slots), places
