"""The bytes of every token, against what the model decodes."""

from collections.abc import Sequence
from typing import Any

import pytest
from torch import Tensor

from twistlm.core.errors import ModelError
from twistlm.models.huggingface import load
from twistlm.models.tabular import TabularLM
from twistlm.models.token_bytes import token_bytes


def test_of_the_bundled_model() -> None:
    """All bytes of a text in order, letters of several bytes included; special tokens have none."""
    lm = load("stories")
    found = token_bytes(lm)
    assert len(found) == lm.vocab_size
    assert lm.eos_token_id is not None
    assert found[lm.eos_token_id] == b""
    for text in (" a cat", "naïve café, 中文 \N{GRINNING FACE}!", "line\n\n  two"):
        assert b"".join(found[token] for token in lm.encode(text).tolist()).decode() == text
    assert sorted(byte for byte in range(256) if bytes([byte]) in found) == list(range(256))


def test_of_a_model_that_writes_digits() -> None:
    assert token_bytes(TabularLM.random(4, 2, 0)) == [b"0", b"1", b"2", b"3"]


class Pieces:
    """A tokenizer as SentencePiece has them: words begin with a mark, and there are tokens for single bytes."""

    all_special_ids = (0,)
    names = ("<s>", "▁the", "▁cat", "s", "<0xC3>", "<0xA9>", "▁", "<extra>")

    def __init__(self) -> None:
        self.added_tokens_decoder = {7: AddedToken()}

    def __len__(self) -> int:
        return len(self.names)

    def convert_ids_to_tokens(self, tokens: Sequence[int]) -> list[str]:
        return [self.names[token] for token in tokens]


class AddedToken:
    special = False


class Spaces(TabularLM):
    """Decodes pieces as SentencePiece does, or puts spaces between all of them."""

    def __init__(self, between: str = "") -> None:
        self.vocab_size, self.tokenizer, self.between = 9, Pieces(), between

    def decode(self, sequences: Sequence[Tensor]) -> list[str]:
        raw: list[Any] = [b"", b" the", b" cat", b"s", b"\xc3", b"\xa9", b" ", b"<extra>"]
        return [
            self.between.encode().join(raw[token] for token in each.tolist()).decode(errors="replace").lstrip()
            for each in sequences
        ]


def test_of_pieces_and_bytes() -> None:
    # One more in the model than in the tokenizer.
    assert token_bytes(Spaces()) == [b"", b" the", b" cat", b"s", b"\xc3", b"\xa9", b" ", b"<extra>", b""]


def test_tokens_that_are_no_pieces_of_a_text_are_refused() -> None:
    with pytest.raises(ModelError, match="whose tokens are pieces of the text"):
        token_bytes(Spaces(between=" "))
