"""What a potential is given: the one place that tells potentials that differ by a condition from all others."""

from collections.abc import Callable
from typing import TypeGuard

from torch import Tensor

from twistlm.core.errors import ConfigError
from twistlm.models.base import Prompts
from twistlm.potentials.base import copied, evaluate
from twistlm.potentials.protocol import ConditionalPotential, Potential


def is_conditional(potential: Potential) -> TypeGuard[ConditionalPotential]:
    """Whether its target differs from case to case by what is given."""
    return isinstance(potential, ConditionalPotential)


def num_following(potential: Potential) -> int:
    """Tokens after a sequence that a condition is read from; 0 where there is none."""
    return potential.num_following if is_conditional(potential) else 0


def condition(potential: Potential, given: str | Tensor | None) -> Tensor | None:
    """What a user gives, as tokens [c]; None for a potential that takes nothing.

    Raises:
        ConfigError: it is missing, not wanted, or of another length.
    """
    if not is_conditional(potential):
        if given is not None:
            raise ConfigError(f"condition = {given!r}: this target has none; leave it out")
        return None
    wanted = potential.num_condition
    if given is None:
        raise ConfigError(f"this target differs by its condition: give condition, {wanted} tokens")
    tokens = potential.condition(given) if isinstance(given, str) else given
    if tokens.numel() != wanted:
        raise ConfigError(
            f"condition = {given!r} has {tokens.numel()} tokens and the target takes {wanted}; lengthen or cut it"
        )
    return tokens


def conditioned(
    potential: Potential,
    uniforms: Callable[[], Tensor],
    prompts: Prompts,
    tokens: Tensor,
    following: Tensor,
    log_p: Tensor,
) -> tuple[Tensor | None, Tensor]:
    """Conditions [B, c] of base draws [B, T] such that (draw, condition) has the law p₀(s) φ(s, c), and log φ [B].

    None and log φ where the potential takes no condition. `following` [B, num_following] with its `log_p` is what the
    base model wrote next; `uniforms` gives randomness [B], where that is not all that is needed.
    """
    if is_conditional(potential):
        return potential.draw_condition(uniforms(), copied(prompts), tokens.clone(), following.clone(), log_p.clone())
    return None, evaluate(potential, prompts, tokens)
