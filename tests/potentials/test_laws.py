"""The laws of potentials, for every registered one."""

import functools
import importlib.util

import pytest
import torch

from tests.scorers import save
from twistlm.core.registry import available
from twistlm.models.base import BaseLM
from twistlm.potentials import (
    BasePotential,
    Classes,
    Classifier,
    Continuation,
    Function,
    Grammar,
    Infilling,
    Jigsaw,
    JsonSchema,
    Length,
    Power,
    Product,
    Regex,
    Reward,
    Threshold,
    Words,
)
from twistlm.testing import check_potential
from twistlm.testing.laws.trial import stories

TOXIC = Classifier("toxicity", "toxic")
EXAMPLES: dict[str, BasePotential] = {
    "classes": Classes("sentiment", ("negative", "neutral", "positive")),
    "classifier": TOXIC,
    "continuation": Continuation(" and"),
    "function": Function(lambda texts: [-float(len(text)) for text in texts]),
    "infilling": Infilling(2),
    "jigsaw": Jigsaw(),
    "json_schema": JsonSchema('{"type": "string"}'),
    "grammar": Grammar('start: "a" start "b" | "x"'),
    "length": Length(2, 6),
    "power": Power(TOXIC, 3.0),
    "product": Product((Regex("a"), TOXIC)),
    "regex": Regex("a"),
    "threshold": Threshold(TOXIC, 0.2),
    "words": Words(none_of=("the",)),
}
CONDITIONS = {"classes": torch.arange(12).remainder(3).view(12, 1), "infilling": torch.arange(24).view(12, 2)}
lm = functools.cache(stories)


def test_every_registered_potential_has_an_example() -> None:
    # A reward model has to be made first.
    assert EXAMPLES.keys() | {"reward"} == available("potential").keys()


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Reward:
    return Reward(save(tmp_path_factory.mktemp("reward"), ["LABEL_0"]))


def test_laws_of_a_reward(reward: Reward) -> None:
    check_potential(reward, lm())


@pytest.mark.parametrize("name", EXAMPLES)
def test_laws(name: str) -> None:
    if name == "jigsaw" and importlib.util.find_spec("toxic_classifier") is None:
        pytest.skip("needs the packaged weights: run `make test`")
    model: BaseLM = lm()
    check_potential(EXAMPLES[name], model, conditions=CONDITIONS.get(name))
