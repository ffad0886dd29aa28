"""The bytes that each token of a model adds to a text, for constraints on characters."""

import re
from typing import Any
from weakref import WeakKeyDictionary

import torch

from twistlm.core.errors import ModelError
from twistlm.models.base import BaseLM

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# What SentencePiece writes for a space.
METASPACE = "\N{LOWER ONE EIGHTH BLOCK}"
CHECKED = 200
# Every constraint on a model asks, and the answer takes a moment.
_KNOWN: WeakKeyDictionary[BaseLM, list[bytes]] = WeakKeyDictionary()


def token_bytes(lm: BaseLM) -> list[bytes]:
    """What each of the V tokens adds to a text, in bytes; nothing for special tokens and those without a text.

    Raises:
        ModelError: the tokenizer writes tokens differently together than one by one (word pieces, say).
    """
    if lm not in _KNOWN:
        _KNOWN[lm] = _token_bytes(lm)
    return _KNOWN[lm]


def _token_bytes(lm: BaseLM) -> list[bytes]:
    tokenizer: Any = getattr(lm, "tokenizer", None)
    if not hasattr(tokenizer, "added_tokens_decoder"):
        # A tokenizer of somebody's own: what it says of each token is all that is known.
        written = [text.encode() for text in lm.decode(list(torch.arange(lm.vocab_size).split(1)))]
        _check(lm, written)
        return written
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)}
    names = tokenizer.convert_ids_to_tokens(list(range(min(lm.vocab_size, len(tokenizer)))))
    byte_of = _bytes_of_letters() if _is_byte_level(tokenizer) else None
    found = [
        b"" if name is None or number in special else name.encode() if number in added else _written(name, byte_of)
        for number, name in enumerate(names)
    ]
    _check(lm, found)
    return found + [b""] * (lm.vocab_size - len(found))


def _is_byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and "ByteLevel" in str(getattr(backend, "decoder", ""))


def _written(name: str, byte_of: dict[str, int] | None) -> bytes:
    if byte_of is not None:
        return bytes(byte_of[letter] for letter in name)
    byte = BYTE_TOKEN.fullmatch(name)
    return name.replace(METASPACE, " ").encode() if byte is None else bytes([int(byte[1], 16)])


def _bytes_of_letters() -> dict[str, int]:
    """The letter by which tokenizers on bytes write each byte (Radford et al. 2019): itself if it can be printed."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + k): byte for k, byte in enumerate(others)}


def _check(lm: BaseLM, found: list[bytes]) -> None:
    """Refuse a tokenizer by which texts are not their tokens' bytes one after the other."""
    known = [number for number, text in enumerate(found) if text]
    chosen = [known[(k * 7919) % len(known)] for k in range(CHECKED)] if known else []
    several = [chosen[at : at + 8] for at in range(0, len(chosen), 8)]
    for tokens, text in zip(several, lm.decode([torch.tensor(tokens) for tokens in several]), strict=True):
        expected = b"".join(found[token] for token in tokens).decode(errors="replace")
        if text.lstrip() != expected.lstrip():
            raise ModelError(
                f"this tokenizer writes {text!r} where its tokens by themselves are {expected!r}: constraints on "
                "characters need one whose tokens are pieces of the text (BPE on bytes, SentencePiece)"
            )
