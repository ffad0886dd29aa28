"""What must follow, given sequence by sequence: infilling, amortised over conditions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from twistlm.core.errors import ConfigError, PotentialError
from twistlm.core.plain import make_plain
from twistlm.core.registry import register
from twistlm.models.base import Prompts
from twistlm.potentials.base import BasePotential
from twistlm.potentials.continuation import check_length, log_p_after, without_start


@register("potential", "infilling")
@dataclass(frozen=True)
class Infilling(BasePotential):
    """φ(s, c) = p₀(c | prompt, s): the next `num_condition` tokens are given, s is to be filled in before them.

    One twist is learnt for all conditions. The first T tokens of any T + c drawn from the base model are an exact
    sample of the target that the last c are the condition of (Zhao et al. 2024, section 7.2.3).

    Attributes:
        num_condition: tokens in a condition.
        batch_size: sequences per forward pass.

    Raises:
        ConfigError: a number is not positive.
    """

    num_condition: int
    batch_size: int = 256
    log_upper_bound = 0.0
    # By a pass of the base model over each, as if what must follow came at once.
    scores_prefixes = True

    def __post_init__(self) -> None:
        """Check the settings."""
        make_plain(self)
        for name in ("num_condition", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")

    @property
    def num_following(self) -> int:
        """The condition is what follows."""
        return self.num_condition

    def condition(self, given: str) -> Tensor:
        """The tokens of a text, as they would follow another.

        Raises:
            PotentialError: not bound to a model.
        """
        lm = self.bound_lm()
        return without_start(lm, lm.encode(given))

    def draw_condition(
        self, uniforms: Tensor, prompts: Prompts, tokens: Tensor, following: Tensor, log_p: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the base model wrote next [B, c], and its log probability [B]."""
        return following, log_p.sum(-1)

    def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """Nothing: without conditions there is no φ.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("Infilling differs from sequence to sequence; pass conditions=…")

    @torch.no_grad()
    def log_phi_given(self, prompts: Prompts, tokens: Tensor, conditions: Tensor) -> Tensor:
        """log p₀(condition | prompt, tokens), float64 [B].

        Raises:
            PotentialError: not bound to a model, or a condition is not in its vocabulary.
            PromptError: prompt, tokens and condition together exceed the model's context.
        """
        lm = self.bound_lm()
        if int(conditions.min()) < 0 or int(conditions.max()) >= lm.vocab_size:
            raise PotentialError(f"a condition holds a token that is not among those below {lm.vocab_size}")
        check_length(lm, prompts, tokens.shape[1] + conditions.shape[1])
        values = []
        for at in range(0, len(tokens), self.batch_size):
            part = slice(at, at + self.batch_size)
            values.append(log_p_after(lm, prompts[part], tokens[part], conditions[part].to(tokens.device)))
        return torch.cat(values)
