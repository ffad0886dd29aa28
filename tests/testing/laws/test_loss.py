"""Every law of losses catches a loss that breaks it."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from twistlm.core import registry
from twistlm.testing import check_loss
from twistlm.training.losses import loss
from twistlm.training.losses.ctl import ctl
from twistlm.training.scored import Scored


def vector(target: Scored, intermediate: Scored) -> Tensor:
    return target.log_psi.sum(0)


def asks_too_much(target: Scored, intermediate: Scored) -> Tensor:
    return (target.log_psi - target.log_normaliser).mean()


def infinite(target: Scored, intermediate: Scored) -> Tensor:
    return ctl(target, intermediate) + (target.log_psi[:, -1] - target.log_phi).square().mean()


def in_place(target: Scored, intermediate: Scored) -> Tensor:
    value = ctl(target, intermediate)
    target.log_phi.sub_(1)
    return value


def noisy(target: Scored, intermediate: Scored) -> Tensor:
    return ctl(target, intermediate) * torch.rand(())


def ordered(target: Scored, intermediate: Scored) -> Tensor:
    return ctl(target, intermediate) + target.log_psi[0].mean()


def without_gradient(target: Scored, intermediate: Scored) -> Tensor:
    return ctl(target, intermediate).detach()


TEMPERATURE = torch.ones((), requires_grad=True)


def with_parameters(target: Scored, intermediate: Scored) -> Tensor:
    return TEMPERATURE * ctl(target, intermediate)


def wrong_sign(target: Scored, intermediate: Scored) -> Tensor:
    return ctl(target, intermediate) + 2 * (target.weights * target.log_psi).sum(0).mean()


def nothing(target: Scored, intermediate: Scored) -> Tensor:
    return 0 * ctl(target, intermediate)


@pytest.mark.parametrize(
    ("function", "law"),
    [
        (vector, "a loss is one number"),
        (asks_too_much, "it is defined for its roles"),
        (infinite, "a loss is finite”: of sequences of which five have φ = 0"),
        (in_place, "what it is given stays as it is"),
        (noisy, "the same batch has the same loss"),
        (ordered, "the order of sequences plays no part"),
        (without_gradient, "its gradient comes by log ψ”: it has no gradient"),
        (with_parameters, "its gradient comes by log ψ alone"),
        (wrong_sign, "the gradient is zero at its optimum, and not at a wrong twist”: at its optimum"),
        (nothing, "the gradient is zero at its optimum, and not at a wrong twist”: at a wrong twist"),
    ],
)
def test_every_law_is_caught(function: Any, law: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._ENTRIES, "loss", {**registry.available("loss")})
    loss("broken", sources=("target", "intermediate"))(function)
    with pytest.raises(AssertionError, match=re.escape(f"loss 'broken' breaks the law “{law}")):
        check_loss("broken")


def of_prefixes(base: Scored) -> Tensor:
    return (base.weights * (base.log_psi.exp() - base.labels.exp()).square()).sum(0).mean()


def test_a_label_of_the_end_weighed_as_a_prefix_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._ENTRIES, "loss", {**registry.available("loss")})
    loss("broken", sources=("base",))(of_prefixes)
    with pytest.raises(AssertionError, match=r"“what drew the sequences plays no part”: at its optimum .* 'labelled'"):
        check_loss("broken")
    loss("mended", sources=("labelled",))(of_prefixes)
    check_loss("mended")


def test_a_loss_may_learn_what_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._ENTRIES, "loss", {**registry.available("loss")})
    loss("unknown", sources=("target", "intermediate"))(wrong_sign)
    check_loss("unknown", optimum=None)
