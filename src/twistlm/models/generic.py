"""Any causal transformer by its own forward pass and its own cache: slower than `fast`, and right for many more.

Prefixes of one length are run together and those of another apart, so that nothing is ever padded: positions, windows
and states are the network's own.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from twistlm.models.base import DecoderState, Prompts
from twistlm.models.packing import in_float32, sharing_copy
from twistlm.models.reading import in_parts

# Tokens that run in one pass, without gradient and with it.
PASS_TOKENS, TRAINING_TOKENS = 16_384, 256
# Under which names networks return what they keep of a prefix, and take it back.
CACHES = ("past_key_values", "cache_params")


@dataclass(frozen=True)
class _Group:
    """Prefixes of one length: their rows in the state [G], and what the network keeps of them."""

    rows: Tensor
    cache: Cache


class GenericDecoder:
    """A network as transformers runs it, reading tokens for `TwistedLM`.

    Args:
        module: the `base_model` of a causal LM.
        trainable: keep gradients through `features` (a twist with its own network).
    """

    serves_threads = False

    def __init__(self, module: nn.Module, trainable: bool = False) -> None:
        self.module, self.trainable = module.eval(), trainable
        self._name = CACHES[0]

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network."""
        return next(self.module.parameters()).dtype

    @torch.no_grad()
    def start(self, prompts: Prompts, capacity: tuple[int, int] = (0, 0)) -> DecoderState:
        """Read U prompts; hidden states [U, d] of their last tokens. No room is made.

        Raises:
            TypeError: what the network keeps cannot be handed from one prefix to another.
        """
        parts, groups = [], []
        for rows in _by_length(prompts):
            hidden, cache = self._read(torch.stack([prompts[row] for row in rows]).to(self.device))
            parts.append(hidden)
            groups.append(_Group(torch.tensor(rows, device=self.device), cache))
        return DecoderState(_in_order(parts, groups), groups)

    @torch.no_grad()
    def advance(self, state: DecoderState, parents: Tensor, tokens: Tensor) -> DecoderState:
        """Append one token to each of the prefixes `parents`; the caches of `state` are moved, not copied."""
        before: list[_Group] = state.cache
        owner = torch.cat([torch.full_like(group.rows, at) for at, group in enumerate(before)])
        places = torch.cat([torch.arange(len(group.rows), device=owner.device) for group in before])
        order = torch.cat([group.rows for group in before]).argsort()
        owner, places = owner[order][parents], places[order][parents]
        parts, groups = [], []
        for at, group in enumerate(before):
            rows = (owner == at).nonzero().squeeze(-1)
            if len(rows):
                group.cache.reorder_cache(places[rows])
                hidden, cache = self._read(tokens[rows].unsqueeze(-1), group.cache)
                parts.append(hidden)
                groups.append(_Group(rows, cache))
        return DecoderState(_in_order(parts, groups), groups)

    def features(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """Hidden states [B, T, d] before each of tokens [B, T], as many sequences at a time as memory has room for."""
        training = self.trainable and torch.is_grad_enabled()
        tokens, parts, order = tokens.to(self.device), [], []
        for rows in _by_length(prompts):
            given = torch.stack([prompts[row] for row in rows]).to(self.device)
            inputs = torch.cat([given, tokens[rows, :-1]], -1)
            most = max(1, (TRAINING_TOKENS if training else PASS_TOKENS) // inputs.shape[1])
            with torch.set_grad_enabled(training):
                found = in_parts(partial(self._hidden, given.shape[1] - 1), (inputs,), most, training)
            parts.append(found)
            order += rows
        return torch.cat(parts)[torch.tensor(order, device=self.device).argsort()]

    def trainable_copy(self) -> "GenericDecoder":
        """An independent copy of the network in float32 whose parameters train."""
        return GenericDecoder(in_float32(self.module).requires_grad_(), trainable=True)

    def adapted_copy(self, adapt: Callable[[nn.Module], None], merge: Callable[[nn.Module], None]) -> "GenericDecoder":
        """The network on the very same frozen weights, with what `adapt` adds to train; nothing is ever merged."""
        adapt(network := sharing_copy(self.module))
        return GenericDecoder(network, trainable=True)

    def _hidden(self, begin: int, tokens: Tensor) -> Tensor:
        hidden: Tensor = self.module(input_ids=tokens, use_cache=False).last_hidden_state
        return hidden[:, begin:]

    def _read(self, tokens: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """Hidden states [G, d] of the last of tokens [G, Q] after what is in `cache`, and the cache with them."""
        given = {} if cache is None else {self._name: cache}
        output: Any = self.module(input_ids=tokens, use_cache=True, **given)
        name = next((name for name in CACHES if isinstance(output.get(name), Cache)), None)
        if name is None:
            raise TypeError("what it keeps of a prefix is none of transformers' caches")
        self._name = name
        return output.last_hidden_state[:, -1], output[name]


def _by_length(prompts: Prompts) -> Iterator[list[int]]:
    """The numbers of those prompts that have one length, for each length."""
    lengths = [prompt.numel() for prompt in prompts]
    for length in sorted(set(lengths)):
        yield [row for row, own in enumerate(lengths) if own == length]


def _in_order(parts: list[Tensor], groups: list[_Group]) -> Tensor:
    return torch.cat(parts)[torch.cat([group.rows for group in groups]).argsort()]
