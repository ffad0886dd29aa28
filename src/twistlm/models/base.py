"""What a base model is: a network that reads tokens, and the logits of what comes next."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Prompts = Sequence[Tensor]
"""One 1-D tensor of token ids per sequence or per run; lengths may differ. Repeated entries may be the same object."""


@dataclass(frozen=True)
class DecoderState:
    """U prefixes, decoded incrementally by one network.

    Attributes:
        features: what predicts the next token: hidden states [U, d], or node numbers [U] of a table.
        cache: whatever the decoder needs to go on; opaque.
    """

    features: Tensor
    cache: Any = None


class Decoder(Protocol):
    """One network that reads tokens: incrementally when sampling, all at once when training."""

    def start(self, prompts: Prompts, capacity: tuple[int, int] = (0, 0)) -> DecoderState:
        """Read U prompts; features predict each one's first new token.

        `capacity`: sequences and new tokens to make room for. More may come.
        """

    def advance(self, state: DecoderState, parents: Tensor, tokens: Tensor) -> DecoderState:
        """The prefixes `state[parents] + tokens`, parents and tokens [U']. `state` must not be used again."""

    def features(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """Teacher-forced features [B, T, …] that predict each of tokens [B, T]; carries gradient if parameters do.

        However many sequences there are: as many run at a time as memory has room for.
        """


class BaseLM(Decoder, Protocol):
    """The base model p₀: a decoder whose features are turned into next-token logits.

    Attributes:
        eos_token_ids: the tokens that end a text; none if no token does.
        eos_token_id: the first of them, which also stands for what comes after an end; None if there is none.
    """

    vocab_size: int
    eos_token_ids: tuple[int, ...]
    eos_token_id: int | None
    max_length: int | None
    feature_size: int

    def logits(self, features: Tensor) -> Tensor:
        """Unnormalised log p₀ over the vocabulary: [..., V] from features [..., d]."""

    def encode(self, text: str) -> Tensor:
        """Token ids [P] of `text`."""

    def decode(self, sequences: Sequence[Tensor]) -> list[str]:
        """The texts of 1-D sequences of token ids, special tokens skipped."""


def is_end(tokens: Tensor, eos_token_ids: Sequence[int]) -> Tensor:
    """Which of the tokens end a text: bool, of their shape."""
    return torch.isin(tokens, torch.tensor(eos_token_ids, dtype=tokens.dtype, device=tokens.device))
