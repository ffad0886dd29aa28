"""Potentials on the words of a text: a regular expression."""

import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from twistlm.core.errors import ConfigError
from twistlm.core.registry import register
from twistlm.potentials.base import check_eps, indicator, set_indicator_bounds
from twistlm.potentials.texts import Of, TextPotential


@register("potential", "regex")
@dataclass(frozen=True)
class Regex(TextPotential):
    """1[the pattern matches] + eps, with Python's `re`.

    Attributes:
        pattern: the regular expression.
        mode: "search" anywhere in the text, or "fullmatch" of all of it.
        negate: 1[it does not match].
        eps: φ where the indicator is 0; 0 makes it a hard constraint (log φ = −inf).
        flags: `re` flags, as an integer.
        of: what is searched, "text" (prompt and continuation together) or "continuation"; None means the continuation
            after a chat and the text after a plain prompt.

    Raises:
        ConfigError: the pattern is invalid (with the position), the mode or `of` is unknown, or eps is negative.
    """

    pattern: str
    mode: Literal["search", "fullmatch"] = "search"
    negate: bool = False
    eps: float = 0.0
    flags: int = 0
    of: Of | None = None

    def __post_init__(self) -> None:
        """Compile the pattern once, so that a mistake is found here and not during sampling."""
        self.check_of()
        check_eps(self.eps)
        if self.mode not in ("search", "fullmatch"):
            raise ConfigError(f"mode must be 'search' or 'fullmatch', not {self.mode!r}")
        try:
            re.compile(self.pattern, self.flags)
        except (re.error, ValueError) as error:
            raise ConfigError(f"invalid regular expression {self.pattern!r}: {error}") from error
        object.__setattr__(self, "flags", int(self.flags))
        set_indicator_bounds(self, self.eps)
        # Where a match anywhere decides, what has been found stays found.
        object.__setattr__(self, "scores_prefixes", self.mode == "search")

    def log_phi_texts(self, texts: list[str]) -> Tensor:
        """log φ [B] of B texts."""
        compiled = re.compile(self.pattern, self.flags)
        match = compiled.search if self.mode == "search" else compiled.fullmatch
        hit = torch.tensor([match(text) is not None for text in texts])
        return indicator(hit != self.negate, self.eps)


def Contains(
    word: str,
    *,
    ignore_case: bool = True,
    negate: bool = False,
    eps: float = 0.0,
    of: Of | None = None,
) -> Regex:
    """The potential 1[the text contains `word`, not as a part of a longer word] + eps."""
    return Regex(
        rf"(?<!\w){re.escape(word)}(?!\w)",
        negate=negate,
        eps=eps,
        flags=re.IGNORECASE if ignore_case else 0,
        of=of,
    )
