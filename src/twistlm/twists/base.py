"""What a twist is: a head over features, and whatever network brings them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from twistlm.core.errors import ConfigError
from twistlm.models.base import Decoder, Prompts


class Head(Protocol):
    """log ψ over the vocabulary from features; the same everywhere before training.

    Without gradient several threads may ask at once.
    """

    @property
    def shrinkage(self) -> Tensor:
        """A scalar buffer that multiplies log ψ: 1 until a held-out choice makes it smaller."""

    def __call__(self, features: Tensor) -> Tensor:
        """log ψ(prefix, v) for every v: [..., V], of any floating type."""

    def gather(self, features: Tensor, tokens: Tensor) -> Tensor:
        """log ψ(prefix, token) for the chosen tokens [...] alone, float32 or wider."""

    def start_at(self, log_psi: float) -> None:
        """Before training, when log ψ is 0 (ψ a half, if it is a probability) everywhere: make it this everywhere."""

    def log_normaliser(self, features: Tensor, logits: Callable[[slice], Tensor], rows: int) -> Tensor:
        """log Σ_v p₀(v) ψ(prefix, v) [n] of features [n, …], with gradient to the twist, `rows` of them at a time.

        `logits`: unnormalised log p₀ of a slice of the rows. `twistlm.core.kernels.normaliser` has this for any head.
        """


@runtime_checkable
class HasValue(Protocol):
    """A head with a term w · x(features) that is the same for every token: the weights see it, the proposal does not.

    Given the rest, a loss like CTL's is convex in w, so that this term can be fitted by itself.
    """

    def value_weight(self) -> Tensor:
        """w [d], the parameter itself, float32."""

    def value_features(self, features: Tensor) -> Tensor:
        """x [..., d], what w is multiplied by, float32, without gradient to w."""


@dataclass(frozen=True)
class Twist:
    """A twist ψ: a head over features, which are the base model's own unless `decoder` brings others.

    `module` holds every trainable parameter. Where the target differs from sequence to sequence, `reader` turns
    conditions [n, c] into features [n, d'] that the head reads beside the prefix's, with gradient, and `opening` makes
    of a prompt [P] and a condition [c] what the decoder reads in the prompt's place.
    """

    head: Head
    module: nn.Module
    decoder: Decoder | None = None
    reader: Callable[[Tensor], Tensor] | None = None
    opening: Callable[[Tensor, Tensor], Tensor] | None = None

    @property
    def reads_conditions(self) -> bool:
        """Whether ψ differs by what is given."""
        return self.reader is not None or self.opening is not None

    def given(self, conditions: Tensor | None) -> Tensor | None:
        """What the head reads of each condition [B, d'], every distinct one read once; None if it reads none.

        Raises:
            ConfigError: it reads conditions and there are none.
        """
        if self.reader is None:
            return None
        distinct, index = _there(conditions).unique(dim=0, return_inverse=True)
        return self.reader(distinct)[index]

    def openings(self, prompts: Prompts, conditions: Tensor | None) -> Prompts:
        """What the decoder reads in the place of B prompts.

        Raises:
            ConfigError: it reads conditions and there are none.
        """
        if self.opening is None:
            return prompts
        pairs = zip(prompts, _there(conditions).cpu(), strict=True)
        return [self.opening(prompt.cpu(), condition) for prompt, condition in pairs]


def _there(conditions: Tensor | None) -> Tensor:
    if conditions is None:
        raise ConfigError("this twist reads conditions, and none were given")
    return conditions
