"""Texts of a grammar: what may come next after a prefix, by the parser of `llguidance`.

A grammar that is not regular has no automaton: brackets nest as deeply as they like. All that is known after a prefix
is which tokens keep it possible, and whether the text is complete there.
"""

import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twistlm.core.errors import ConfigError, PotentialError

# Of the masks that are kept, one bit a token each.
MOST_BYTES = 64_000_000
# Marks special tokens for the parser, and is in no text: no valid UTF-8 has it.
MARKER = b"\xff"
# In a JSON schema, what holds schemas by name, and what holds plain values.
BY_NAME, PLAIN = {"properties", "$defs", "definitions", "dependentSchemas"}, {"enum", "const", "default", "examples"}
# The parser reads them as patterns of what is written, escapes and all: `^[^"]$` takes the two letters `\"`.
UNSAFE = ("pattern", "patternProperties")


@lru_cache(64)
def check(grammar: str) -> str:
    """A grammar as it is, if the parser takes it.

    Raises:
        ConfigError: it does not; or `llguidance` is not installed.
    """
    message = str(_llguidance().LLMatcher.validate_grammar(grammar))
    if message and not message.startswith("WARNING"):
        raise ConfigError(f"the grammar does not compile: {' '.join(message.split())[:300]}")
    return grammar


@lru_cache(64)
def of_json_schema(schema: str) -> str:
    """The grammar of what a JSON schema allows, recursive or not.

    Raises:
        ConfigError: the schema is not JSON, or uses what is not supported.
    """
    try:
        if unsafe := next((key for key in _keywords(json.loads(schema)) if key in UNSAFE), None):
            raise ValueError(f"Grammar takes no {unsafe}; JsonSchema takes `pattern`, or leave it out")
        return check(str(_llguidance().LLMatcher.grammar_from_json_schema(schema)))
    except ValueError as error:
        raise ConfigError(f"schema is not supported: {error}") from error


class Grammar:
    """A grammar over the tokens of a model.

    Args:
        grammar: as the parser reads it, Lark's syntax or its own.
        tokens: the bytes of each of the V tokens; those without are never allowed.
        ends: the tokens that end a text.
    """

    def __init__(self, grammar: str, tokens: Sequence[bytes], ends: Sequence[int]) -> None:
        self.grammar, self.ends = grammar, list(ends)
        # EOS ends a text, whatever a tokenizer writes for it.
        self._tokens = [b"" if MARKER in token or at in self.ends else token for at, token in enumerate(tokens)]
        self._by_bytes: dict[bytes, list[int]] = {}
        for token, written in enumerate(self._tokens):
            if written:
                self._by_bytes.setdefault(written, []).append(token)
        self._sorted = sorted(self._by_bytes)
        self._written: list[int] = []
        self._masks: OrderedDict[tuple[int, ...], NDArray[np.uint8]] = OrderedDict()
        self._room = max(1, MOST_BYTES // (len(tokens) // 8 + 1))

    def allowed(self, prefix: Sequence[int]) -> Tensor:
        """Which tokens keep the text possible after a prefix, bool [V]; EOS where the text is complete."""
        bits = np.unpackbits(self._mask(tuple(prefix)), count=len(self._tokens), bitorder="little")
        return torch.from_numpy(bits.astype(np.bool_))

    def allows(self, prefix: Sequence[int], token: int) -> bool:
        """Whether a token keeps the text possible after a prefix."""
        return bool(self._mask(tuple(prefix))[token >> 3] >> (token & 7) & 1)

    def accepts(self, tokens: Sequence[int]) -> bool:
        """Whether the text of these tokens, EOS not among them, is one of the grammar's."""
        return self._read(list(tokens)) and bool(self._matcher.is_accepting())

    def _mask(self, prefix: tuple[int, ...]) -> NDArray[np.uint8]:
        if prefix not in self._masks:
            self._masks[prefix] = self._next(prefix)
            if len(self._masks) > self._room:
                self._masks.popitem(last=False)
        else:
            self._masks.move_to_end(prefix)
        return self._masks[prefix]

    def _next(self, prefix: tuple[int, ...]) -> NDArray[np.uint8]:
        allowed, complete = np.zeros(len(self._tokens), dtype=np.bool_), False
        if (end := next((at for at, token in enumerate(prefix) if token in self.ends), None)) is not None:
            complete = self.accepts(prefix[:end])
        elif self._read(list(prefix)):
            complete = bool(self._matcher.is_accepting())
            if forced := self._matcher.compute_ff_bytes():
                allowed[self._after(forced)] = True
            else:
                allowed = self._said()
        if complete:
            allowed[self.ends] = True
        return np.packbits(allowed, bitorder="little")

    def _said(self) -> NDArray[np.bool_]:
        """The parser's own mask, without its end of text, which is no token of the model."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        return np.unpackbits(mask, count=len(self._tokens), bitorder="little").astype(np.bool_)

    def _after(self, forced: bytes) -> list[int]:
        """The tokens that may come where the next bytes are certain, of which the parser names but one tokenization."""
        beginnings = (forced[:end] for end in range(1, len(forced) + 1))
        short = [token for written in beginnings for token in self._by_bytes.get(written, ())]
        return short + [token for token in self._longer(forced) if self._matcher.validate_tokens([token]) == 1]

    def _longer(self, beginning: bytes) -> Iterator[int]:
        """The tokens that begin so and go on."""
        for written in self._sorted[bisect_right(self._sorted, beginning) :]:
            if not written.startswith(beginning):
                return
            yield from self._by_bytes[written]

    def _read(self, tokens: list[int]) -> bool:
        """Bring the parser to a prefix; False if the grammar does not allow it."""
        pairs = zip(self._written, tokens, strict=False)
        shared = next((at for at, (old, new) in enumerate(pairs) if old != new), min(len(self._written), len(tokens)))
        if shared < len(self._written):
            self._matcher.rollback(len(self._written) - shared)
            self._written = self._written[:shared]
        count = self._matcher.try_consume_tokens(tokens[shared:]) if len(tokens) > shared else 0
        self._written += tokens[shared : shared + count]
        if self._matcher.is_error():
            reason = self._matcher.get_error()
            del self._matcher
            self._written = []
            raise PotentialError(f"the grammar is too much for its parser: {' '.join(str(reason).split())[:300]}")
        return self._written == tokens

    @cached_property
    def _matcher(self) -> Any:
        library = _llguidance()
        vocabulary = _Vocabulary([*self._tokens, b"<end>"], self._by_bytes)
        tokenizer = library.LLTokenizer(library.TokenizerWrapper(vocabulary))
        return library.LLMatcher(tokenizer, self.grammar, log_level=0)


def _keywords(schema: object) -> Iterator[str]:
    """The keywords of a JSON schema and of those within it."""
    if isinstance(schema, list):
        for each in schema:
            yield from _keywords(each)
    elif isinstance(schema, Mapping):
        yield from schema
        for key, value in schema.items():
            if key not in PLAIN:
                yield from _keywords(list(value.values()) if key in BY_NAME and isinstance(value, Mapping) else value)


class _Vocabulary:
    """What the parser asks of a tokenizer: the bytes of every token, with one of its own that ends a text."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], by_bytes: Mapping[bytes, Sequence[int]]) -> None:
        self.tokens, self.eos_token_id = tokens, len(tokens) - 1
        self.special_token_ids, self.by_bytes = [self.eos_token_id], by_bytes

    def __call__(self, text: bytes) -> list[int]:
        """The longest tokens one after the other: the parser wants some tokenization of what is certain to come."""
        found, at = [], 0
        while at < len(text):
            ends = range(len(text), at, -1)
            end = next((end for end in ends if text[at:end] in self.by_bytes), None)
            if end is not None:
                found.append(self.by_bytes[text[at:end]][0])
            at = end or at + 1
        return found


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise ConfigError("grammars need llguidance: pip install 'twistlm[constraints]'") from error
    return llguidance
