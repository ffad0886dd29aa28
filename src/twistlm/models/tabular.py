"""A language model small enough to enumerate: one row of logits per prefix.

Everything about it can be computed exactly (`twistlm.testing.enumeration`), which is how the rest of the package is
tested. Prefixes are the nodes of a V-ary tree: the root is 0 and the child of node n by token v is nV + v + 1.
A decoder's features are node numbers, so the same `TwistedLM` runs on it as on a transformer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from twistlm.core.errors import ModelError
from twistlm.models.base import DecoderState, Prompts


def num_nodes(vocab_size: int, depth: int) -> int:
    """Number of prefixes of fewer than `depth` tokens."""
    return int(sum(vocab_size**level for level in range(depth)))


class TabularLM:
    """p₀ given by a table of logits [prefixes, V] over all prefixes of fewer than `max_length` tokens.

    `eos_token_id`: the token that ends a text, or several.
    """

    def __init__(self, table: Tensor, max_length: int, eos_token_id: int | tuple[int, ...] | None = None) -> None:
        several = eos_token_id if isinstance(eos_token_id, tuple) else (eos_token_id,)
        self.table, self.eos_token_ids = table, tuple(end for end in several if end is not None)
        self.eos_token_id = self.eos_token_ids[0] if self.eos_token_ids else None
        self.max_length: int | None = max_length
        self.vocab_size = table.shape[1]
        self.feature_size = 1
        if self.vocab_size > 6 or table.shape[0] != num_nodes(self.vocab_size, max_length):
            raise ModelError(
                f"a tabular model needs V ≤ 6 and one row per prefix: {num_nodes(self.vocab_size, max_length)} rows "
                f"for V = {self.vocab_size} and max_length = {max_length}, not {table.shape[0]}"
            )

    @staticmethod
    def random(
        vocab_size: int,
        max_length: int,
        seed: int,
        scale: float = 1.0,
        eos_token_id: int | tuple[int, ...] | None = None,
    ) -> "TabularLM":
        """Independent normal logits with standard deviation `scale`."""
        generator = torch.Generator().manual_seed(seed)
        shape = (num_nodes(vocab_size, max_length), vocab_size)
        table = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        return TabularLM(table, max_length, eos_token_id)

    def start(self, prompts: Prompts, capacity: tuple[int, int] = (0, 0)) -> DecoderState:
        """Walk each prompt from the root."""
        return DecoderState(torch.stack([self._walk(prompt) for prompt in prompts]))

    def advance(self, state: DecoderState, parents: Tensor, tokens: Tensor) -> DecoderState:
        """The children of nodes `parents` by `tokens`."""
        return DecoderState(state.features[parents] * self.vocab_size + tokens + 1)

    def features(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """Node numbers [B, T] before each token."""
        node = self.start(prompts).features
        nodes = []
        for t in range(tokens.shape[1]):
            nodes.append(node)
            node = node * self.vocab_size + tokens[:, t] + 1
        return torch.stack(nodes, 1)

    def logits(self, features: Tensor) -> Tensor:
        """Rows of the table."""
        return self.table[features]

    def encode(self, text: str) -> Tensor:
        """Tokens are written as digits."""
        return torch.tensor([int(character) for character in text], dtype=torch.long)

    def decode(self, sequences: Sequence[Tensor]) -> list[str]:
        """Tokens are written as digits."""
        return ["".join(map(str, sequence.tolist())) for sequence in sequences]

    def _walk(self, prompt: Tensor) -> Tensor:
        node = torch.tensor(0)
        for token in prompt:
            node = node * self.vocab_size + token + 1
        return node
