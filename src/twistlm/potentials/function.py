"""Your own Python function as a potential, of texts or of tokens."""

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from twistlm.core.advice import coded
from twistlm.core.errors import ConfigError, PotentialError
from twistlm.core.plain import make_plain
from twistlm.core.registry import register
from twistlm.models.base import Prompts
from twistlm.potentials.texts import Of, Pair, TextPotential

logger = logging.getLogger("twistlm")

# Values between 0 and 1, and none other, before a function is suspected of returning φ for log φ.
ENOUGH = 16


class _Suspicion:
    """Watches what should be log φ until it is clear; says once if it looks like φ."""

    def __init__(self) -> None:
        self.seen, self.over = 0, False

    def look(self, values: Tensor, function: Callable[..., Any]) -> None:
        if self.over or not values.numel():
            return
        self.seen += values.numel()
        like_phi = bool(((values > 0) & (values <= 1)).all())
        self.over = not like_phi or self.seen >= ENOUGH
        if like_phi and self.over:
            logger.warning(
                coded(
                    "TW104",
                    "all of the first %d values of %s are between 0 and 1, as those of φ are, and they are read as "
                    "log φ; return the logarithm, or say Function(..., log=False)",
                ),
                self.seen,
                getattr(function, "__qualname__", type(function).__name__),
            )


@register("potential", "function")
@dataclass(frozen=True)
class Function(TextPotential):
    """Any Python function as a potential.

    Attributes:
        function: of a list of B distinct texts (`on="text"`), returning B numbers; of two lists, B prompts and their
            answers (`on="pair"`, a chat's prompt being what the user said last), returning B numbers; or of prompts and
            tokens [B, T] (`on="tokens"`, no tokenizer needed), returning a tensor [B].
        on: what the function reads.
        log: the function returns log φ in nats; False if it returns φ ≥ 0 itself.
        log_upper_bound: log of an upper bound on φ, None if there is none. Rejection sampling needs one.
        batched: False if the function takes one text, or one prompt and its answer, and returns one number.
        prefixes: the function tells something of a text that is not finished too (what it returns grows with the
            chances that the finished one will score high), and may be asked about it while a text is being written.
        of: what a text is, "text" (prompt and continuation together) or "continuation"; None means the continuation
            after a chat and the text after a plain prompt. Pairs are always "chat".

    Raises:
        ConfigError: `function` is not callable, is a coroutine, or the settings contradict each other.
    """

    function: Callable[..., Any]
    on: Literal["text", "pair", "tokens"] = "text"
    log: bool = True
    log_upper_bound: float | None = None
    batched: bool = True
    of: Of | None = None
    prefixes: bool = False
    reads_pairs = True
    # One for all copies that `bind` makes.
    _suspicion: _Suspicion = field(default_factory=_Suspicion, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the settings."""
        make_plain(self)
        if not callable(self.function):
            raise ConfigError(f"function must be callable, not {type(self.function).__name__}")
        if inspect.iscoroutinefunction(self.function):
            raise ConfigError(f"{self.function.__qualname__} is a coroutine function: wrap it in asyncio.run")
        if self.on not in ("text", "pair", "tokens"):
            raise ConfigError(f"on must be 'text', 'pair' or 'tokens', not {self.on!r}")
        if self.on == "pair" and self.of is None:
            object.__setattr__(self, "of", "chat")
        if (self.on == "pair") != (self.of == "chat"):
            raise ConfigError(f"on = {self.on!r} and of = {self.of!r} contradict each other; pairs are on='pair'")
        self.check_of()
        if self.on == "tokens" and not self.batched:
            raise ConfigError("a function on tokens is always batched; batched=False is for texts and pairs")
        object.__setattr__(self, "scores_prefixes", self.prefixes)

    def identified_by(self) -> Any:
        """Its arguments but for `prefixes`, which changes no value of φ."""
        return {name: value for name, value in super().identified_by().items() if name != "prefixes"}

    def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """log φ, float64 [B]."""
        if self.on == "tokens":
            return self._log(self.function(prompts, tokens))
        return super().log_phi(prompts, tokens)

    def log_phi_texts(self, texts: list[str] | list[Pair]) -> Tensor:
        """log φ [B] of B texts, or of B pairs."""
        columns = list(zip(*[(t.question, t.answer) if isinstance(t, Pair) else (t,) for t in texts], strict=True))
        lists = [list(column) for column in columns]
        return self._log(self.function(*lists) if self.batched else list(map(self.function, *lists)))

    def _log(self, returned: Any) -> Tensor:
        # Straight to float64: by way of torch's default type, Python's floats would lose half their digits.
        values = torch.as_tensor(returned, dtype=torch.float64)
        if self.log:
            self._suspicion.look(values, self.function)
            return values
        if (values < 0).any():
            raise PotentialError(f"φ must not be negative, and was {values.min().item():.6g}; log=True takes log φ")
        return values.log()
