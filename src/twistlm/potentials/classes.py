"""The probability of a class that is given sequence by sequence: one twist for all classes of a classifier."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from twistlm.core.errors import ConfigError
from twistlm.core.plain import make_plain
from twistlm.core.registry import register
from twistlm.models.base import BaseLM, Prompts
from twistlm.potentials.base import BasePotential, evaluate
from twistlm.potentials.classifier import Classifier
from twistlm.potentials.scorer import of_scorer, scorer
from twistlm.potentials.texts import Of


@register("potential", "classes")
@dataclass(frozen=True)
class Classes(BasePotential):
    """φ(s, c) = p(class c | s) under a classifier, for whichever class each sequence is given.

    A sequence from p₀ with a class drawn from the classifier is an exact sample of that class' target. A condition is
    one token, the class' number, which is also how a twist reads it.

    Attributes:
        model: as for `Classifier`.
        labels: the classes, all of the classifier's, so that their probabilities sum to one.
        of: as for `Classifier`.

    Raises:
        ConfigError: fewer than two labels, or `of` is unknown; when it is bound, others than the classifier's.
    """

    model: str
    labels: tuple[str, ...]
    of: Of | None = None
    log_upper_bound = 0.0
    num_condition = 1
    num_following = 0
    scores_prefixes = True
    scorers: tuple[Classifier, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the labels and make a scorer of each."""
        make_plain(self)
        if len(self.labels) < 2:
            raise ConfigError(f"labels must be at least two classes, not {self.labels}")
        object.__setattr__(self, "labels", tuple(self.labels))
        object.__setattr__(self, "scorers", tuple(Classifier(self.model, label, of=self.of) for label in self.labels))

    def identified_by(self) -> Any:
        """Its labels, what it reads if that is not the default, and the classifier's content."""
        read = {} if self.of is None else {"of": self.of}
        return {"labels": self.labels, "model": of_scorer(self.model), **read}

    def bind(self, lm: BaseLM) -> "Classes":
        """A copy whose scorers read sequences of `lm`; from here on the classifier's labels are known to be these.

        Raises:
            ConfigError: labels are not all of the classifier's, once each, or its classes do not exclude each other.
        """
        config = scorer(self.model, None).config
        names = [str(name) for name in config.id2label.values()]
        if config.num_labels == 1 or config.problem_type == "multi_label_classification":
            raise ConfigError(
                f"model = {self.model!r} says of each label by itself whether a text has it; classes exclude each "
                "other: use a classifier with a softmax, or Classifier for one label"
            )
        if sorted(label.lower() for label in self.labels) != sorted(name.lower() for name in names):
            raise ConfigError(
                f"labels = {', '.join(self.labels)} must be all of the classifier's, once each, so that their "
                f"probabilities sum to one: {', '.join(names)}"
            )
        bound = super().bind(lm)
        object.__setattr__(bound, "scorers", tuple(each.bind(lm) for each in self.scorers))
        return bound

    def condition(self, given: str) -> Tensor:
        """The number of a label, as a condition [1].

        Raises:
            ConfigError: there is no such label.
        """
        if given not in self.labels:
            raise ConfigError(f"condition = {given!r} is no label; choose one of: {', '.join(self.labels)}")
        return torch.tensor([self.labels.index(given)])

    def draw_condition(
        self, uniforms: Tensor, prompts: Prompts, tokens: Tensor, following: Tensor, log_p: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A class for each sequence, drawn from the classifier [B, 1], and its log probability [B]."""
        log_classes = self._log_p(prompts, tokens)
        below = log_classes.softmax(-1).cumsum(-1)
        drawn = (uniforms.unsqueeze(-1).to(below.device) > below).sum(-1, keepdim=True)
        drawn = drawn.clamp_max(len(self.labels) - 1)
        return drawn.to(tokens.device), log_classes.gather(-1, drawn).squeeze(-1)

    def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """Nothing: without conditions there is no φ.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("Classes differs from sequence to sequence; pass conditions=…")

    def log_phi_given(self, prompts: Prompts, tokens: Tensor, conditions: Tensor) -> Tensor:
        """log p(class), float64 [B]."""
        return self._log_p(prompts, tokens).gather(-1, conditions.to(tokens.device)).squeeze(-1)

    def _log_p(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """log p of every class, float64 [B, classes]."""
        return torch.stack([evaluate(each, prompts, tokens) for each in self.scorers], -1)
