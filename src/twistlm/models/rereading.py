"""Decoding without a cache, for want of memory: every prefix is read anew at each step, as many at a time as fit.

T steps cost T²/2 tokens in place of T, and nothing is kept of what was read but the tokens themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from twistlm.core.memory import in_pieces
from twistlm.models.base import BaseLM, Decoder, DecoderState, Prompts

# Prefixes at a time, whose features at all positions are there for a moment.
ROWS = 128


@dataclass(frozen=True)
class _Prefixes:
    """U prefixes: a prompt each, and the tokens [U, t] that follow it."""

    prompts: list[Tensor]
    tokens: Tensor


class Rereading:
    """What another decoder reads, step by step; the same up to rounding."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    def start(self, prompts: Prompts, capacity: tuple[int, int] = (0, 0)) -> DecoderState:
        """As for `Decoder`; no room is made."""
        return self._read(_Prefixes(list(prompts), torch.zeros(len(prompts), 0, dtype=torch.long)))

    def advance(self, state: DecoderState, parents: Tensor, tokens: Tensor) -> DecoderState:
        """As for `Decoder`."""
        before: _Prefixes = state.cache
        longer = torch.cat([before.tokens.to(tokens.device)[parents], tokens.unsqueeze(1)], 1)
        return self._read(_Prefixes([before.prompts[row] for row in parents.tolist()], longer))

    def features(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """As for `Decoder`."""
        return self.decoder.features(prompts, tokens)

    def _read(self, prefixes: _Prefixes) -> DecoderState:
        # The features before a token that may be any are those of the prefix.
        inputs = torch.nn.functional.pad(prefixes.tokens, (0, 1))

        def last(start: int, rows: slice) -> Tensor:
            part = slice(start + rows.start, start + rows.stop)
            return self.decoder.features(prefixes.prompts[part], inputs[part])[:, -1].clone()

        parts, count = [], len(inputs)
        for start in range(0, count, ROWS):
            parts.append(in_pieces(partial(last, start), min(ROWS, count - start), "reading prefixes"))
        return DecoderState(torch.cat(parts), prefixes)


class RereadingLM(Rereading):
    """A base model that is read in this way."""

    def __init__(self, lm: BaseLM) -> None:
        super().__init__(lm)
        self.lm, self.vocab_size = lm, lm.vocab_size
        self.eos_token_ids, self.eos_token_id = lm.eos_token_ids, lm.eos_token_id
        self.max_length, self.feature_size = lm.max_length, lm.feature_size

    def logits(self, features: Tensor) -> Tensor:
        """As for `BaseLM`."""
        return self.lm.logits(features)

    def encode(self, text: str) -> Tensor:
        """As for `BaseLM`."""
        return self.lm.encode(text)

    def decode(self, sequences: Sequence[Tensor]) -> list[str]:
        """As for `BaseLM`."""
        return self.lm.decode(sequences)
