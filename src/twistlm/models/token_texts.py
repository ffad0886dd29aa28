"""Which part of a text each token is, and whether two models mean the same by theirs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from twistlm.core.errors import ModelError
from twistlm.models.base import BaseLM


def token_texts(lm: BaseLM, tokens: Tensor, parents: Tensor | None = None) -> list[list[str]]:
    """What each of tokens [T, n] adds to the text of its prefix.

    A tokenizer may write several tokens differently than one by one (spaces, bytes of one letter), so prefixes are
    decoded and subtracted. Bytes of a letter that is not complete add nothing; the last of them adds the letter.

    Args:
        lm: decodes.
        tokens: the token that each of n sequences got at each of T steps.
        parents: the sequence [T, n] that each one continues; None: itself.
    """
    prefixes = tokens.new_empty((tokens.shape[1], 0))
    texts = [""] * tokens.shape[1]
    found = []
    for t, column in enumerate(tokens):
        continued = torch.arange(len(column)) if parents is None else parents[t]
        prefixes = torch.cat([prefixes[continued], column.unsqueeze(-1)], 1)
        before = [texts[k] for k in continued.tolist()]
        texts = _decoded(lm, prefixes, last=t == len(tokens) - 1)
        found.append([text[len(prefix) :] for text, prefix in zip(texts, before, strict=True)])
    return found


def token_texts_of(lm: BaseLM, tokens: Tensor) -> list[list[str]]:
    """`token_texts` of whole sequences [n, T], one list for each."""
    return [list(each) for each in zip(*token_texts(lm, tokens.T.cpu()), strict=True)]


def _decoded(lm: BaseLM, prefixes: Tensor, last: bool) -> list[str]:
    """The texts of prefixes [n, t], every distinct one decoded once; while more comes, without an incomplete letter."""
    distinct, index = prefixes.unique(dim=0, return_inverse=True)
    texts: Sequence[str] = lm.decode(list(distinct))
    if not last:
        texts = [text.rstrip("\N{REPLACEMENT CHARACTER}") for text in texts]
    return [texts[k] for k in index.tolist()]


def check_same_tokens(lm: BaseLM, base: BaseLM, base_name: str) -> None:
    """Refuse a model that does not read and write the tokens of the base model.

    Raises:
        ModelError: it does not.
    """
    name = getattr(lm, "name", "the model")
    if lm.vocab_size != base.vocab_size:
        raise ModelError(
            f"{name} has {lm.vocab_size} tokens and the base model {base_name} has {base.vocab_size}; certify a model "
            f"that was tuned from {base_name}"
        )
    some = torch.arange(base.vocab_size).split(1)
    if set(lm.eos_token_ids) != set(base.eos_token_ids):
        raise ModelError(
            f"texts of {name} end with {', '.join(map(str, lm.eos_token_ids))} and those of the base model {base_name} "
            f"with {', '.join(map(str, base.eos_token_ids))}; give both the same eos_token_id in generation_config.json"
        )
    if lm.decode(some) != base.decode(some):
        raise ModelError(
            f"{name} has another tokenizer than the base model {base_name}; certify a model that was tuned from "
            f"{base_name}"
        )
