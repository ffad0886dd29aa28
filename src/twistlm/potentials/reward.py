"""A published reward model, exponentiated."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from twistlm.core.errors import ConfigError
from twistlm.core.plain import make_plain
from twistlm.core.registry import register
from twistlm.models.base import BaseLM, Prompts
from twistlm.potentials.base import check_beta
from twistlm.potentials.scorer import ScorerModel, check_batch_size, of_scorer, scorer
from twistlm.potentials.texts import Of, Pair, TextPotential


@register("potential", "reward")
@dataclass(frozen=True)
class Reward(TextPotential):
    """exp(beta · reward) under a reward model: an `AutoModelForSequenceClassification` with a single logit.

    This is the target of RLHF with KL weight 1 / beta. A reward is not bounded by itself, so rejection sampling and
    upper bounds on log Z need a `log_upper_bound` that is known from elsewhere; what exceeds it is an error.

    Attributes:
        model: hub name, folder, or a loaded pair (model, tokenizer).
        beta: what the reward is multiplied by, not 0; below 0 it is low rewards that are sought.
        of: what is rewarded, "chat" (prompt and answer, through the reward model's own chat template, or as a pair of
            texts where it has none), "text" (both decoded together) or "continuation"; None means the continuation
            after a chat and the text after a plain prompt.
        log_upper_bound: what beta · reward is never above, in nats; None if that is not known.
        batch_size: distinct texts per forward pass at most, fewer where they are long; they are sorted by length first.
        device: torch device; None means CUDA if there is one. A loaded pair stays where it is.

    Raises:
        ConfigError: beta, `of`, the bound or the batch size is out of range.
    """

    model: ScorerModel
    beta: float = 1.0
    of: Of | None = "chat"
    log_upper_bound: float | None = None
    batch_size: int = 128
    device: str | None = None
    reads_pairs = True
    scores_prefixes = True

    def __post_init__(self) -> None:
        """Check what can be checked without loading the model."""
        make_plain(self)
        self.check_of()
        if self.beta == 0:
            raise ConfigError("beta must not be 0, which asks for nothing; give a positive or a negative number")
        check_beta(abs(self.beta))
        if isinstance(self.model, Path):
            object.__setattr__(self, "model", str(self.model))
        if self.log_upper_bound is not None and not math.isfinite(self.log_upper_bound):
            raise ConfigError(f"log_upper_bound must be finite, or None if unknown, not {self.log_upper_bound}")
        check_batch_size(self.batch_size)

    def bind(self, lm: BaseLM) -> Self:
        """A copy that reads sequences of `lm`; from here on the model is loaded and known to be a reward model.

        Raises:
            ModelError: the model cannot be loaded, or has no head.
            ConfigError: it has more than one logit, or cannot tell a prompt from an answer and is to score pairs.
        """
        loaded = scorer(self.model, self.device)
        if loaded.config.num_labels != 1:
            raise ConfigError(
                f"model = {self.model!r} has {loaded.config.num_labels} labels and a reward model has one; use "
                "Classifier with one of its labels"
            )
        if self.of == "chat":
            loaded.check_pairs()
        return super().bind(lm)

    def identified_by(self) -> Any:
        """Its arguments, with the reward model's content for its name."""
        return {**super().identified_by(), "model": of_scorer(self.model)}

    def log_phi_texts(self, texts: list[str] | list[Pair]) -> Tensor:
        """beta · reward, float64 [B]."""
        return self.beta * self.logit_texts(texts)

    def logit_texts(self, texts: list[str] | list[Pair]) -> Tensor:
        """The reward itself, float64 [B]."""
        return scorer(self.model, self.device).logits(texts, self.batch_size)[:, 0]

    def logit(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """The reward of every sequence, float64 [B]: `Threshold(Reward(…), 2.0, on="logit")` asks for 2 or more."""
        return self.map_texts(prompts, tokens, self.logit_texts)
