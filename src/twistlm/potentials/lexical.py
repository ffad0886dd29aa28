"""Potentials on the words of a text: a regular expression."""

import re
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor

from twistlm.automata.automaton import Automaton
from twistlm.automata.patterns import in_rust
from twistlm.core.errors import ConfigError
from twistlm.core.plain import make_plain
from twistlm.core.registry import register
from twistlm.models.base import BaseLM, Prompts
from twistlm.potentials.base import check_eps, indicator, set_indicator_bounds
from twistlm.potentials.constraint import Constraint
from twistlm.potentials.texts import Of, TextPotential


@register("potential", "regex")
@dataclass(frozen=True)
class Regex(Constraint, TextPotential):
    """1[the pattern matches] + eps, with Python's `re`, or with an automaton that samplers keep to.

    Attributes:
        pattern: the regular expression.
        mode: "search" anywhere in the text, or "fullmatch" of all of it.
        negate: 1[it does not match].
        eps: φ where the indicator is 0; 0 makes it a hard constraint (log φ = −inf).
        flags: `re` flags, as an integer.
        of: what is searched, "text" (prompt and continuation together) or "continuation"; None means the continuation
            after a chat and the text after a plain prompt.
        constrain: samplers never leave what matches (`twistlm.potentials.constraint`). The pattern is then read the
            same, without look-around, back-references, anchors, and possessive and atomic parts; it is about the
            continuation, of which most begin with a space, and a hard constraint.

    Raises:
        ConfigError: the pattern is invalid (with the position), the mode or `of` is unknown, eps is negative, or one of
            them does not go with `constrain`.
    """

    pattern: str
    mode: Literal["search", "fullmatch"] = "search"
    negate: bool = False
    eps: float = 0.0
    flags: int = 0
    of: Of | None = None
    constrain: bool = False

    def __post_init__(self) -> None:
        """Compile the pattern once, so that a mistake is found here and not during sampling."""
        make_plain(self)
        self.check_of()
        check_eps(self.eps)
        if self.mode not in ("search", "fullmatch"):
            raise ConfigError(f"mode must be 'search' or 'fullmatch', not {self.mode!r}")
        object.__setattr__(self, "flags", int(self.flags))
        try:
            re.compile(self.pattern, self.flags)
        except (re.error, ValueError, OverflowError, RecursionError) as error:
            raise ConfigError(f"invalid regular expression {self.pattern!r}: {error}") from error
        if self.constrain:
            self._check_constraint()
        set_indicator_bounds(self, self.eps)
        # Where a match anywhere decides, what has been found stays found.
        object.__setattr__(self, "scores_prefixes", self.mode == "search" and not self.constrain)

    def _check_constraint(self) -> None:
        if self.eps != 0:
            raise ConfigError(
                f"eps must be 0 where constrain is true, not {self.eps}: samplers never leave the pattern"
            )
        if self.of not in (None, "continuation"):
            raise ConfigError(f"of must be 'continuation' where constrain is true, not {self.of!r}")
        self.automaton()

    def identified_by(self) -> Any:
        """What makes it this one: which of the two reads the pattern, too."""
        return super().identified_by() | ({"constrain": True} if self.constrain else {})

    def automaton(self) -> Automaton:
        """The continuations that match."""
        written = in_rust(self.pattern, self.flags)
        found = Automaton.of_pattern(written if self.mode == "fullmatch" else f"(?s:.*){written}(?s:.*)")
        return ~found if self.negate else found

    def bind(self, lm: BaseLM) -> Self:
        """A copy that reads this model's texts, or its tokens."""
        return super().bind(lm) if self.constrain else TextPotential.bind(self, lm)

    def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """log φ [B]."""
        return super().log_phi(prompts, tokens) if self.constrain else TextPotential.log_phi(self, prompts, tokens)

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
