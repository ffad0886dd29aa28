"""Every law of twists catches a twist that breaks it."""

import itertools
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.architectures import tiny_lm
from twistlm.models.base import BaseLM, DecoderState, Prompts
from twistlm.testing import check_twist
from twistlm.twists.base import Twist
from twistlm.twists.head import VocabularyHead

PROMPTS = [torch.tensor([5, 6, 7]), torch.tensor([9])]


class Sound(VocabularyHead):
    """A linear head that is right; others break it in one place."""

    def __init__(self, lm: BaseLM) -> None:
        super().__init__(nn.Identity(), nn.Parameter(torch.zeros(lm.vocab_size, lm.feature_size)))


class StartsElsewhere(Sound):
    def __init__(self, lm: BaseLM) -> None:
        super().__init__(lm)
        nn.init.normal_(self.weight)


class StartsNowhere(Sound):
    def start_at(self, log_psi: float) -> None:
        pass


class TooFew(Sound):
    def forward(self, features: Tensor) -> Tensor:
        log_psi = super().forward(features)
        return log_psi if not self.bias.any() or features.dim() < 3 else log_psi[..., :-1]


class HalfGather(Sound):
    def gather(self, features: Tensor, tokens: Tensor) -> Tensor:
        return super().gather(features, tokens).bfloat16()


class Infinite(Sound):
    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features).masked_fill(self.bias > self.bias.mean() + 1e-3, torch.inf)


class OtherGather(Sound):
    def gather(self, features: Tensor, tokens: Tensor) -> Tensor:
        return super().gather(features, tokens) - self.bias[tokens]


class OtherSum(Sound):
    def log_normaliser(self, features: Tensor, logits: Any, rows: int) -> Tensor:
        return super().log_normaliser(features, logits, rows) + self.bias.sum()


class DetachedSum(Sound):
    def log_normaliser(self, features: Tensor, logits: Any, rows: int) -> Tensor:
        value = super().log_normaliser(features, logits, rows)
        return value.detach() + 0.5 * (value - value.detach())


class SeesTheBatch(Sound):
    def gather(self, features: Tensor, tokens: Tensor) -> Tensor:
        return super().gather(features, tokens) + self.bias.sum() * (features.shape[0] == 1)


class Unused(Sound):
    def __init__(self, lm: BaseLM) -> None:
        super().__init__(lm)
        self.extra = nn.Parameter(torch.zeros(3))


class ReachesTheModel(Sound):
    def __init__(self, lm: BaseLM) -> None:
        super().__init__(lm)
        self.theirs = [next(lm.module.parameters()).requires_grad_(True)]  # type: ignore[attr-defined]

    def gather(self, features: Tensor, tokens: Tensor) -> Tensor:
        return super().gather(features, tokens) + 0 * self.theirs[0].float().sum()


class Unsaved(Sound):
    built = itertools.count()

    def __init__(self, lm: BaseLM) -> None:
        super().__init__(lm)
        self.number = next(self.built)

    def gather(self, features: Tensor, tokens: Tensor) -> Tensor:
        return super().gather(features, tokens if self.number < 2 else tokens * 0)


class Stale(Sound):
    def _packed(self, dtype: torch.dtype) -> Any:
        if self._product is None:
            super()._packed(dtype)
        return self._product[1]  # type: ignore[index]


class Unshrinkable(Sound):
    def forward(self, features: Tensor) -> Tensor:
        log_psi: Tensor = features.float() @ self.weight.T + self.bias
        return log_psi

    def gather(self, features: Tensor, tokens: Tensor) -> Tensor:
        return self.forward(features).gather(-1, tokens.reshape(*features.shape[:-1], -1)).view(tokens.shape)

    def log_normaliser(self, features: Tensor, logits: Any, rows: int) -> Tensor:
        return torch.logsumexp(logits(slice(None)).log_softmax(-1) + self.forward(features), -1)


class FalseValue(Sound):
    """Says that its bias is a value."""

    def value_weight(self) -> Tensor:
        return self.bias

    def value_features(self, features: Tensor) -> Tensor:
        return torch.ones(*features.shape[:-1], len(self.bias))


class Own:
    """A decoder of its own: the model's, but for what a subclass breaks."""

    def __init__(self, lm: BaseLM) -> None:
        self.lm = lm

    def start(self, prompts: Prompts, capacity: tuple[int, int] = (0, 0)) -> DecoderState:
        return self.lm.start(prompts, capacity)

    def advance(self, state: DecoderState, parents: Tensor, tokens: Tensor) -> DecoderState:
        return self.lm.advance(state, parents, tokens)

    def features(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        return self.lm.features(prompts, tokens).detach()


class ForgetsParents(Own):
    def advance(self, state: DecoderState, parents: Tensor, tokens: Tensor) -> DecoderState:
        return self.lm.advance(state, torch.zeros_like(parents), tokens)


class Noisy(Own):
    def features(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        features = super().features(prompts, tokens)
        return features + 1e-5 * torch.randn_like(features)


def of_head(cls: type[Sound]) -> Any:
    def build(lm: BaseLM) -> Twist:
        head = cls(lm)
        return Twist(head, head)

    return build


def of_decoder(cls: type[Own]) -> Any:
    def build(lm: BaseLM) -> Twist:
        return replace(of_head(Sound)(lm), decoder=cls(lm))

    return build


@pytest.mark.parametrize("build", [of_head(Sound), of_decoder(Own)])
def test_a_sound_twist_passes(build: Any) -> None:
    check_twist(build, tiny_lm("llama"), prompts=PROMPTS)


@pytest.mark.parametrize(
    ("build", "law"),
    [
        (of_head(StartsElsewhere), "before training log ψ is one constant"),
        (of_head(StartsNowhere), "start_at makes log ψ one constant everywhere"),
        (of_head(TooFew), "log ψ is one number for every token"),
        (of_head(HalfGather), "gather gives log ψ of each chosen token"),
        (of_head(Infinite), "log ψ is a finite number"),
        (of_head(OtherGather), "gather gives what the head gives"),
        (of_head(OtherSum), "log_normaliser is log Σ_v p₀(v) ψ(v)"),
        (of_head(DetachedSum), "log_normaliser has the gradient"),
        (of_decoder(ForgetsParents), "token by token through caches it is what one full pass gives"),
        (of_decoder(Noisy), "the same sequences have the same log ψ, bit for bit"),
        (of_head(SeesTheBatch), "a batch is its sequences, each for itself"),
        (of_head(Unused), "every trained parameter has a gradient”: extra has none"),
        (of_head(ReachesTheModel), "the base model is left alone"),
        (of_head(Unsaved), "what module.state_dict() saves makes a fresh twist the same"),
        (of_head(Stale), "after an update log ψ is the same with gradient and without"),
        (of_head(Unshrinkable), "shrunk to 0 it leaves the proposal at p₀"),
        (of_head(FalseValue), "moving the value by w moves log ψ by w · value_features"),
    ],
    ids=lambda each: "",
)
def test_every_law_is_caught(build: Any, law: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(f"breaks the law “{law}")):
        check_twist(build, tiny_lm("llama"), prompts=PROMPTS)
