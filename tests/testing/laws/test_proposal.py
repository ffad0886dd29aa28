"""Every law of proposals catches a proposal that breaks it."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from twistlm.sampling.particles import NextToken
from twistlm.testing import check_proposal

Terms = tuple[Tensor, ...]


def with_twist(following: NextToken) -> Terms:
    return following.logits, following.inducing  # type: ignore[return-value]


def a_tensor(following: NextToken) -> Any:
    return following.logits


def one_column(following: NextToken) -> Terms:
    return following.logits, torch.zeros(len(following.logits), 1)


def undefined(following: NextToken) -> Terms:
    return following.logits, torch.full_like(following.logits, torch.nan)


def in_place(following: NextToken) -> Terms:
    return (following.logits.mul_(1.5),)


def statistics(following: NextToken) -> Terms:
    return (following.logits / following.logits.std(),)


def best_three(following: NextToken) -> Terms:
    least = following.logits.topk(3).values[..., -1:] if following.logits.shape[-1] > 2 else -torch.inf
    return (following.logits.masked_fill(following.logits < least, -torch.inf),)


class Alternating:
    calls = 0

    def __call__(self, following: NextToken) -> Terms:
        self.calls += 1
        return (following.logits * (1 + self.calls % 2),)


def cuts_off_two(following: NextToken) -> Terms:
    """As the one above, only where there are no more."""
    cut = following.logits.shape[-1] == 2
    return (
        (following.logits.masked_fill(following.logits < following.logits.amax(-1, keepdim=True), -torch.inf),)
        if (cut)
        else (following.logits,)
    )


@pytest.mark.parametrize(
    ("proposal", "law"),
    [
        (with_twist, "its terms are numbers for every token"),
        (lambda following: 1 / 0, "it has terms for every prefix"),
        (a_tensor, "its terms are numbers for every token"),
        (one_column, "its terms are numbers for every token"),
        (undefined, "its terms are numbers for every token"),
        (in_place, "what it is given stays as it is"),
        (statistics, "a batch is its prefixes, each for itself"),
        (best_three, "whatever has a chance under p₀ψ has one"),
        (Alternating(), "tokens are drawn with the densities that weigh them, which sum to one"),
        (cuts_off_two, "SMC with it has E[Ẑ] = Z"),
    ],
)
def test_every_law_is_caught(proposal: Any, law: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(f"breaks the law “{law}")):
        check_proposal(proposal)
