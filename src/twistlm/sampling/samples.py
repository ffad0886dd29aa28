"""Complete sequences, with the densities they were drawn with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from twistlm.models.base import Prompts
from twistlm.sampling.cases import Case


@dataclass(frozen=True)
class Siblings:
    """K further draws of each token from the same proposal: children of the same prefixes that nobody followed up.

    They cost no pass through the model and multiply the particles that an expectation over π_t has to work with.

    Attributes:
        tokens: [..., T, K].
        log_ratio: log p₀ − log q of each [..., T, K], float64.
    """

    tokens: Tensor
    log_ratio: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> "Siblings":
        """Both tensors through `function`."""
        return Siblings(function(self.tokens), function(self.log_ratio))

    @staticmethod
    def combined(parts: "Sequence[Siblings]", function: Callable[[list[Tensor]], Tensor]) -> "Siblings | None":
        """The tensors of all parts through `function`; None if there are no parts."""
        if not parts:
            return None
        return Siblings(function([each.tokens for each in parts]), function([each.log_ratio for each in parts]))


@dataclass(frozen=True)
class Samples:
    """B complete sequences and the densities they were drawn with: what training and divergences consume.

    Attributes:
        prompts: B prompts.
        tokens: [B, T].
        mask: 1 where the token was a random choice, 0 after an absorbing EOS [B, T].
        log_p, log_q: per-token log densities at the time of drawing, float64 [B, T], 0 where masked.
        log_phi: log φ of the whole sequence, float64 [B], or of a fresh end of each prefix [B, T].
        features: the base model's features before each token [B, T, …], if they were kept.
        siblings: further draws of each token [B, T, K], if they were kept.
        conditions: what each sequence's target is given [B, c], if targets differ.
    """

    prompts: Prompts
    tokens: Tensor
    mask: Tensor
    log_p: Tensor
    log_q: Tensor
    log_phi: Tensor
    features: Tensor | None = None
    siblings: Siblings | None = None
    conditions: Tensor | None = None

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def select(self, index: Tensor) -> "Samples":
        """The sequences at `index` [B'], in that order."""
        return replace(
            self,
            prompts=[self.prompts[i] for i in index.tolist()],
            tokens=self.tokens[index],
            mask=self.mask[index],
            log_p=self.log_p[index],
            log_q=self.log_q[index],
            log_phi=self.log_phi[index],
            features=None if self.features is None else self.features[index],
            siblings=None if self.siblings is None else self.siblings.map(lambda x: x[index]),
            conditions=None if self.conditions is None else self.conditions[index],
        )

    def bare(self) -> "Samples":
        """Without what is kept of every token, where only counting matters: selecting copies it."""
        return replace(self, features=None, siblings=None)

    @property
    def cases(self) -> list[Case]:
        """The case of each sequence."""
        given = [None] * len(self) if self.conditions is None else list(self.conditions)
        return [Case(prompt, condition) for prompt, condition in zip(self.prompts, given, strict=True)]

    @property
    def log_ratios(self) -> Tensor:
        """r = log p₀φ − log q of each sequence [B]."""
        return (self.log_p - self.log_q).sum(-1) + self.log_phi

    @property
    def log_q_over_p(self) -> Tensor:
        """log q − log p₀ of each sequence [B], whose mean over draws from q is KL(q‖p₀)."""
        return (self.log_q - self.log_p).sum(-1)

    def start(self, length: int) -> "Samples":
        """The first `length` tokens of each sequence; log φ stays that of the whole."""
        if length == self.tokens.shape[1]:
            return self
        first = slice(None), slice(length)
        return replace(
            self,
            tokens=self.tokens[first],
            mask=self.mask[first],
            log_p=self.log_p[first],
            log_q=self.log_q[first],
            features=None if self.features is None else self.features[first],
            siblings=None if self.siblings is None else self.siblings.map(lambda x: x[first]),
        )

    @staticmethod
    def concatenate(parts: "Sequence[Samples]") -> "Samples":
        """All sequences of `parts`, in order; what not every part has (features, siblings, conditions) is left out.

        Of siblings each token has as many as in the part with the fewest.
        """

        def joined(name: str) -> Tensor:
            return torch.cat([getattr(part, name) for part in parts])

        siblings = [part.siblings for part in parts if part.siblings is not None]
        fewest = min((each.tokens.shape[-1] for each in siblings), default=0)
        siblings = [each.map(lambda x: x[..., :fewest]) for each in siblings]
        return Samples(
            prompts=[prompt for part in parts for prompt in part.prompts],
            **{name: joined(name) for name in ("tokens", "mask", "log_p", "log_q", "log_phi")},
            features=joined("features") if all(part.features is not None for part in parts) else None,
            conditions=joined("conditions") if all(part.conditions is not None for part in parts) else None,
            siblings=Siblings.combined(siblings, torch.cat) if len(siblings) == len(parts) else None,
        )
