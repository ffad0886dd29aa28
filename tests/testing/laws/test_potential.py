"""Every law of potentials catches a potential that breaks it."""

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from twistlm.models.base import BaseLM, Prompts
from twistlm.models.tabular import TabularLM
from twistlm.potentials import BasePotential
from twistlm.testing import check_potential

LM = TabularLM.random(3, 5, seed=0)
PROMPT = torch.tensor([1])
TOKENS = torch.tensor([[0, 1, 2], [2, 2, 1], [1, 1, 1], [0, 0, 2]])


class Sound(BasePotential):
    """−Σ of the tokens: right; others break it in one place."""

    log_upper_bound: float | None = 0.0
    log_lower_bound: float | None = -6.0

    def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        return -tokens.sum(-1).double()


class Unbound(Sound):
    def bind(self, lm: BaseLM) -> Any:
        raise RuntimeError("no")


class Raises(Sound):
    def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        raise ZeroDivisionError


class Column(Sound):
    def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        return super().log_phi(prompts, tokens).unsqueeze(-1)


class Listed(Sound):
    def log_phi(self, prompts: Prompts, tokens: Tensor) -> Any:
        return super().log_phi(prompts, tokens).tolist()


class Whole(Sound):
    def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        return -tokens.sum(-1)


class Undefined(Sound):
    def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        return super().log_phi(prompts, tokens).masked_fill(tokens[:, 0] == 2, math.nan)


class InPlace(Sound):
    def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        return -tokens.cumsum_(-1)[:, -1].double()


class Spoils(Sound):
    def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        prompts[0].fill_(2)
        return super().log_phi(prompts, tokens)


class Noisy(Sound):
    def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        return super().log_phi(prompts, tokens) - 1e-9 * torch.rand(len(tokens))


class Above(Sound):
    log_upper_bound = -3.0


class Below(Sound):
    log_lower_bound = -3.0


class NoBound(Sound):
    log_upper_bound = math.nan


class Averaged(Sound):
    def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        log_phi = super().log_phi(prompts, tokens)
        return (log_phi + log_phi.mean()) / 2


class Numbered(Sound):
    log_lower_bound = None

    def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        return super().log_phi(prompts, tokens) - (torch.arange(len(tokens)) if len(tokens) > 1 else 0)


class Given(Sound):
    """Differs by a condition; with `shift`, draw_condition says something else of it."""

    num_condition, num_following = 1, 0
    log_lower_bound = None

    def __init__(self, shift: float = 0.0, width: int = 1) -> None:
        self.shift, self.width = shift, width

    def condition(self, given: str) -> Tensor:
        return torch.tensor([int(given)])

    def log_phi_given(self, prompts: Prompts, tokens: Tensor, conditions: Tensor) -> Tensor:
        return self.log_phi(prompts, tokens) - conditions[:, 0]

    def draw_condition(
        self, uniforms: Tensor, prompts: Prompts, tokens: Tensor, following: Tensor, log_p: Tensor
    ) -> tuple[Tensor, Tensor]:
        given = (uniforms * 2).long().unsqueeze(-1).expand(-1, self.width)
        return given, self.log_phi_given(prompts, tokens, given) + self.shift


GIVEN = torch.tensor([[0], [1], [0], [2]])


@pytest.mark.parametrize("potential", [Sound(), Given()])
def test_a_sound_potential_passes(potential: BasePotential) -> None:
    conditions = GIVEN if isinstance(potential, Given) else None
    check_potential(potential, LM, prompt=PROMPT, tokens=TOKENS, conditions=conditions)


@pytest.mark.parametrize(
    ("potential", "law"),
    [
        (Unbound(), "it can be bound"),
        (Raises(), "log φ exists for every sequence"),
        (
            Column(),
            "log φ is a tensor of one number for each sequence”: log_phi of 4 sequences of 3 tokens gave [4, 1]",
        ),
        (Listed(), "log φ is a tensor of one number for each sequence"),
        (Whole(), "log φ is a tensor of one number for each sequence"),
        (Undefined(), "log φ is a number or −∞”: it is nan for '1221'"),
        (InPlace(), "what it is given stays as it is"),
        (Spoils(), "what it is given stays as it is"),
        (Noisy(), "the same sequence has the same log φ, bit for bit"),
        (Above(), "log_upper_bound is kept”: log φ is -2 for '1002'"),
        (Below(), "log_lower_bound is kept"),
        (NoBound(), "log_upper_bound is kept"),
        (Averaged(), "a batch is its sequences, each for itself”: alone"),
        (Numbered(), "a batch is its sequences, each for itself"),
        (Given(), "there is something to try it on"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_every_law_is_caught(potential: BasePotential, law: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(f"breaks the law “{law}")):
        check_potential(potential, LM, prompt=PROMPT.clone(), tokens=TOKENS)


@pytest.mark.parametrize(
    ("potential", "law"),
    [
        (Given(shift=0.5), "draw_condition and log_phi_given agree"),
        (Given(width=2), "a condition has num_condition tokens"),
    ],
)
def test_every_law_of_conditions_is_caught(potential: BasePotential, law: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(f"breaks the law “{law}")):
        check_potential(potential, LM, prompt=PROMPT, tokens=TOKENS, conditions=GIVEN)


def test_one_sequence_is_nothing_to_try_it_on() -> None:
    with pytest.raises(AssertionError, match="Give at least two"):
        check_potential(Sound(), LM, prompt=PROMPT, tokens=TOKENS[:1])
