"""Keys and values of the prefixes that particles share, one layer of the network at a time.

`GrowingLayer` serves any attention: buffers with room for what is to come, so that appending a token writes one column
instead of copying everything, reordered in place: of the columns in use only those rows are copied whose parent is
another row. `PrefixLayer` attends by itself, and so can hold what prefixes share once for all of them: their prompt, or
what all prompts begin with and the rest of each. `FollowingLayer` reads, and keeps what is new apart.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicLayer

from twistlm.core.kernels.threads import together
from twistlm.models.groups import Groups, merged, mixture

Pair = tuple[Tensor, Tensor]
"""Keys and values of one layer."""

# Numbers to read above which one query's attention is worth a second thread.
TOGETHER = 2**20
# torch multiplies matrices of fewer than 400 products by a loop that takes several times as long as a library's kernel
# for more, and its softmax over fewer numbers than a vector register holds is as slow.
FEWEST_COLUMNS, NARROW = 8, 16
# Bytes above which rows are worth being copied one by one; smaller ones take less time together, copied twice.
LARGE_ROW = 20_000


class GrowingLayer(DynamicLayer):
    """Buffers [≥ U, heads, ≥ L, d] of which the first `used` columns count.

    Args:
        rows: sequences to make room for after the prompt; more is possible and slower.
        columns: tokens to make room for after the prompt; likewise.
    """

    def __init__(self, rows: int = 0, columns: int = 0) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.used = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """No columns yet; the first states are those of the prompts."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.columns += key_states.shape[-2]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append columns; returns views of all columns in use."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, end = key_states.shape[0], self.used + key_states.shape[-2]
        self.keys = self._appended(self.keys, key_states, end)
        self.values = self._appended(self.values, value_states, end)
        self.used = end
        return self.keys[:rows, :, :end], self.values[:rows, :, :end]

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self.used

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep rows `beam_idx` [U'], with repetition."""
        self.keys = self._selected(self.keys, beam_idx)
        self.values = self._selected(self.values, beam_idx)

    def _appended(self, buffer: Tensor, states: Tensor, end: int) -> Tensor:
        rows = states.shape[0]
        if rows > buffer.shape[0] or end > buffer.shape[-2]:
            grown = self._empty(buffer, rows, end)
            grown[: buffer.shape[0], :, : self.used] = buffer[:, :, : self.used]
            buffer = grown
        buffer[:rows, :, self.used : end] = states
        return buffer

    def _empty(self, buffer: Tensor, rows: int, end: int) -> Tensor:
        # Memory that is never written is never taken, so room for all that may come costs nothing before it does.
        columns = self.columns if end <= self.columns else end + max(16, end // 2)
        return buffer.new_empty(max(rows, self.rows), buffer.shape[1], columns, buffer.shape[3])

    def _selected(self, buffer: Tensor, rows: Tensor) -> Tensor:
        count = rows.shape[0]
        in_use = buffer[:, :, : self.used]
        if count > buffer.shape[0]:
            grown = self._empty(buffer, count, self.used)
            torch.index_select(in_use, 0, rows, out=grown[:count, :, : self.used])
            return grown
        moved = (rows != torch.arange(count, device=rows.device)).nonzero().squeeze(-1)
        if moved.numel() == 0:
            return buffer
        sources = rows[moved]
        kept = sources[sources < count]
        first = int(moved[0])
        if first + len(moved) == count and int(sources.max()) < first:
            # Prefixes have only split: their further children come after them, in one piece.
            torch.index_select(in_use[:first], 0, sources, out=in_use[first:count])
        elif torch.equal(rows[kept], kept) and in_use[0].nbytes > LARGE_ROW:
            # No source is overwritten (the first child of a prefix keeps its row), so each row is copied once.
            torch._foreach_copy_([in_use[i] for i in moved.tolist()], [in_use[i] for i in sources.tolist()])
        else:
            in_use[moved] = in_use.index_select(0, sources)
        return buffer


class PrefixLayer(GrowingLayer):
    """A layer on the CPU that answers single queries itself (`attend`), in float32 whatever the network's precision.

    One query over a cache reads every number once and computes next to nothing. torch's fused kernel is made for long
    queries and is slow at it in half precision (100 sequences × 12 heads × 28 columns: 1.5 ms in bfloat16, 0.6 in
    float32); products from a float32 cache take 0.4, for twice the memory of a half-precision one. If there was one
    prompt, its columns are kept and read once for all sequences, as an ordinary matrix product; if there were several,
    so are the columns that all begin with, and the rest of each once for the sequences that go on from it.

    Args:
        rows: as above.
        columns: as above.
        prompt: keys and values [heads, P, d] of a prompt that has been read before, or of what all prompts begin with.
    """

    def __init__(self, rows: int = 0, columns: int = 0, prompt: Pair | None = None) -> None:
        super().__init__(rows, columns)
        self.prompt = prompt
        self.rests: list[Pair] = []
        self.groups: Groups | None = None
        if prompt is not None:
            self._begin(*prompt)

    def _empty(self, buffer: Tensor, rows: int, end: int) -> Tensor:
        made = super()._empty(buffer, rows, end)
        # What has weight zero is multiplied all the same.
        made[:, :, :FEWEST_COLUMNS] = 0
        return made

    def part(self, rests: Sequence[Pair], groups: Groups) -> None:
        """Let rows go on from the rests of different prompts, batches of [G, heads, P, d]; before the first token."""
        self.rests = [(keys.float().flatten(0, 1), values.float().flatten(0, 1)) for keys, values in rests]
        self.groups = groups
        if self.prompt is None:
            self._begin(rests[0][0][0].float(), rests[0][1][0].float())

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append columns; returns the new ones alone (all there are, for the prompts): attention looks here."""
        super().update(key_states.float(), value_states.float())
        return key_states, value_states

    def _begin(self, keys: Tensor, values: Tensor) -> None:
        """No columns but the prompt's."""
        self.lazy_initialization(keys[None, :, :0], values[None, :, :0])

    def get_seq_length(self) -> int:
        """Columns in use, with the prompt's; of different prompts, the longest's."""
        shared = 0 if self.prompt is None else self.prompt[0].shape[-2]
        return shared + self.used + (0 if self.groups is None else self.groups.longest)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep rows `beam_idx` [U'], with repetition; there are none to move before the first token."""
        if self.used > 0:
            super().reorder_cache(beam_idx)

    def share(self, count: int) -> None:
        """Count the first `count` columns in use, in which all rows agree, as the prompt's from now on."""
        assert self.prompt is not None
        kept = self.used - count
        grown = []
        for shared, own in zip(self.prompt, (self.keys, self.values), strict=True):
            grown.append(torch.cat([shared, own[0, :, :count]], -2))
            own[:, :, :kept] = own[:, :, count : self.used].clone()
        self.prompt, self.used = (grown[0], grown[1]), kept

    def whole(self, rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values [rows, heads, L, d] with the prompt's, for an attention that needs them in one piece.

        Raises:
            NotImplementedError: prompts differ, and so do their lengths. No network that can keep them apart asks.
        """
        if self.groups is not None:
            raise NotImplementedError("columns of different prompts are never in one piece")
        parts = [self.keys[:rows, :, : self.used], self.values[:rows, :, : self.used]]
        if self.prompt is not None:
            shared = [each.expand(rows, -1, -1, -1) for each in self.prompt]
            parts = [torch.cat(pair, -2) for pair in zip(shared, parts, strict=True)]
        return parts[0].to(dtype), parts[1].to(dtype)

    def attend(self, query: Tensor, scaling: float) -> Tensor:
        """softmax(scaling · q·Kᵀ) · V [U, 1, H, d] of a query [U, H, 1, d]; H a multiple of the heads kept."""
        large = query.shape[0] * self.keys.shape[1] * self.get_seq_length() * self.keys.shape[-1] > TOGETHER
        with together(large):
            return self._attend(query, scaling)

    def _attend(self, query: Tensor, scaling: float) -> Tensor:
        rows, heads, _, width = query.shape
        shared_heads = self.keys.shape[1]
        group = heads // shared_heads
        q = (query.float() * scaling).reshape(rows, shared_heads, group, width)
        if self.groups is not None:
            return self._attend_apart(q, self.groups).view(rows, 1, heads, -1).to(query.dtype)
        keys = self.keys[:rows, :, : self.used].flatten(0, 1)
        values = self.values[:rows, :, : self.used].flatten(0, 1)
        scores = torch.bmm(q.flatten(0, 1), keys.transpose(1, 2)).view(rows, shared_heads, group, self.used)
        if self.prompt is None:
            result = torch.bmm(softmax(scores).flatten(0, 1), values)
        else:
            prompt_keys, prompt_values = self.prompt
            across = torch.bmm(_heads_first(q), prompt_keys.transpose(1, 2))
            length = across.shape[-1]
            across = across.view(shared_heads, rows, group, length).transpose(0, 1)
            weights = softmax(torch.cat([across, scores], -1))
            own = weights[..., length:].flatten(0, 1)
            if self.used < FEWEST_COLUMNS <= self.values.shape[-2]:
                # Columns that are not in use have weight zero.
                own = pad(own, (0, FEWEST_COLUMNS - self.used))
                values = self.values[:rows, :, :FEWEST_COLUMNS].flatten(0, 1)
            result = torch.bmm(own, values)
            shared = torch.bmm(_heads_first(weights[..., :length]), prompt_values)
            result = result.view(rows, shared_heads, group, -1)
            result += shared.view(shared_heads, rows, group, -1).transpose(0, 1)
        return result.view(rows, 1, heads, -1).to(query.dtype)

    def _attend_apart(self, q: Tensor, groups: Groups) -> Tensor:
        """Attention of scaled queries [U, heads, group, d] over the common beginning, prompts' rests, and their own."""
        rows, heads, group, _ = q.shape
        keys = self.keys[:rows, :, : self.used].flatten(0, 1)
        values = self.values[:rows, :, : self.used].flatten(0, 1)
        own = mixture(torch.bmm(q.flatten(0, 1), keys.transpose(1, 2)), values)
        parts = [own.map(lambda x: x.view(rows, heads, group, -1)), groups.attend(q, self.rests)]
        if self.prompt is not None:
            prompt_keys, prompt_values = self.prompt
            shared = mixture(torch.bmm(_heads_first(q), prompt_keys.transpose(1, 2)), prompt_values)
            parts.append(shared.map(lambda x: x.view(heads, rows, group, -1).transpose(0, 1)))
        return merged(parts)


class FollowingLayer(DynamicLayer):
    """New columns that follow others: joined with them for one attention at a time, and kept apart.

    Args:
        length: how many columns [B, heads, L, d] there are before.
        before: makes them, keys and values; None if there are none.
    """

    def __init__(self, length: int = 0, before: Callable[[], Pair] | None = None) -> None:
        super().__init__()
        self.length, self.before = length, before

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keep the new columns, of one pass; returns all."""
        self.lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states, value_states
        if self.before is None:
            return key_states, value_states
        keys, values = self.before()
        return torch.cat([keys, key_states], -2), torch.cat([values, value_states], -2)

    def get_seq_length(self) -> int:
        """Columns so far."""
        return self.length + int(super().get_seq_length())


def following(length: int, before: Sequence[Callable[[], Pair]]) -> Cache:
    """A cache for one pass after `length` columns that `before` makes, one function for each layer; none if empty."""
    if not before:
        return Cache(layer_class_to_replicate=FollowingLayer)
    return Cache([FollowingLayer(length, each) for each in before])


def softmax(x: Tensor) -> Tensor:
    """Over the last dimension, which may be short."""
    if x.shape[-1] >= NARROW:
        return x.softmax(-1)
    shares = (x - x.amax(-1, keepdim=True)).exp_()
    return shares.div_(shares.sum(-1, keepdim=True))


def _heads_first(x: Tensor) -> Tensor:
    """[U, heads, group, n] as [heads, U·group, n]."""
    return x.transpose(0, 1).flatten(1, 2)
