"""What a potential is: φ on whole sequences."""

from typing import Protocol, runtime_checkable

from torch import Tensor

from twistlm.models.base import BaseLM, Prompts


@runtime_checkable
class Potential(Protocol):
    """A terminal potential φ ≥ 0 on whole sequences. (Del Moral's potentials G_t are our `log_increment`.)"""

    log_upper_bound: float | None
    """log of an upper bound on φ (0 for a probability), or None if none is known."""

    def bind(self, lm: BaseLM) -> "Potential":
        """The same potential, ready to read sequences of this model (its tokenizer, its probabilities)."""

    def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """log φ [B] of B prompts followed by tokens [B, T]; −inf is a hard constraint."""


@runtime_checkable
class ConditionalPotential(Potential, Protocol):
    """A potential φ(s, c) whose target differs from sequence to sequence by what it is given, a condition c."""

    num_condition: int
    """Tokens in a condition."""

    num_following: int
    """Tokens after a sequence that its condition is read from."""

    def condition(self, given: str) -> Tensor:
        """What a user writes, as the tokens of a condition."""

    def draw_condition(
        self, uniforms: Tensor, prompts: Prompts, tokens: Tensor, following: Tensor, log_p: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Conditions [B, c] such that (sequence, condition) has the joint law p₀(s) φ(s, c), and log φ [B] of each.

        `following` [B, num_following]: what the base model wrote after the sequences, with its `log_p`; `uniforms` [B]:
        randomness, where that is not all that is needed.
        """

    def log_phi_given(self, prompts: Prompts, tokens: Tensor, conditions: Tensor) -> Tensor:
        """log φ [B] of B prompts followed by tokens [B, T], given conditions [B, c]."""
