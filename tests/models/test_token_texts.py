"""Texts of single tokens, which must add up to the text of all."""

import torch

from twistlm.models.huggingface import load
from twistlm.models.token_texts import token_texts


def test_pieces_add_up_to_the_text() -> None:
    lm = load("stories")
    texts = ["Once upon a time, the café was  empty 🌟", "<script>alert(1)</script> said naïve Zoë, twice & more"]
    encoded = [lm.encode(text) for text in texts]
    length = min(tokens.numel() for tokens in encoded)
    tokens = torch.stack([each[:length] for each in encoded], 1)
    found = token_texts(lm, tokens)
    for n in range(2):
        assert "".join(column[n] for column in found) == lm.decode([tokens[:, n]])[0]
    assert sum(len(column[0]) > 0 for column in found) > 5


def test_a_letter_of_several_bytes_comes_with_its_last() -> None:
    lm = load("stories")
    star = lm.encode("🌟")
    assert star.numel() > 1, "one token would prove nothing"
    found = token_texts(lm, torch.cat([star, lm.encode(" a")]).unsqueeze(-1))
    assert [each for (each,) in found] == [*[""] * (star.numel() - 1), "🌟", " a"]


def test_pieces_follow_the_parents() -> None:
    lm = load("stories")
    first, second = lm.encode(" cat dog"), lm.encode(" ran sat")
    parents = torch.tensor([[0, 1], [1, 1]])
    assert token_texts(lm, torch.stack([first, second]), parents) == [[" cat", " dog"], [" ran", " sat"]]
