import json
import re
import sys

import pytest
import torch
from torch import Tensor

from twistlm.core.errors import ConfigError
from twistlm.core.registry import available
from twistlm.potentials import (
    BasePotential,
    Classes,
    Classifier,
    Contains,
    Continuation,
    Function,
    Grammar,
    Infilling,
    Jigsaw,
    JsonSchema,
    Length,
    Regex,
    Reward,
    Threshold,
    Words,
    evaluate,
    from_spec,
    spec,
)

TRUSTED = (f"{__name__}:shout", "no.such:thing", "math:nothing")


def shout(texts: list[str]) -> list[float]:
    """At the top of a module, so it can be found again."""
    return [-float(len(text)) for text in texts]


POTENTIALS = {
    "classes": Classes("sentiment", ("negative", "positive")),
    "classifier": Classifier("some/model", "toxic", beta=2.0, logit_means="not label", device="cpu"),
    "threshold": Threshold(Jigsaw("insult"), -5.0, eps=1e-16, on="logit", direction="<="),
    "continuation": Continuation((3, 4), absorbing_eos=False),
    "infilling": Infilling(3, batch_size=7),
    "regex": Regex("a+", mode="fullmatch", negate=True, eps=0.1, flags=re.IGNORECASE, of="continuation"),
    "reward": Reward("some/model", beta=-2.0, of="text", log_upper_bound=3.0),
    "function": Function(shout, log_upper_bound=0.0),
    "jigsaw": Jigsaw("Threat", beta=4.0, of="continuation"),
    "product": Jigsaw() * Contains("cat") * Function(shout),
    "grammar": Grammar('start: "a" start "b" | "x"'),
    "json_schema": JsonSchema({"type": "string", "maxLength": 3}),
    "length": Length(2, None, "sentences"),
    "words": Words(("a",), ("b", "c"), match_case=False, constrain=False),
    "power": (Jigsaw() * Regex("x")) ** 0.5,
}


def test_every_registered_potential_is_covered_here() -> None:
    built_in = {name for name, entry in available("potential").items() if entry.value.__module__.startswith("twistlm")}
    assert built_in == set(POTENTIALS)
    assert all(entry.summary for entry in available("potential").values())


@pytest.mark.parametrize("name", POTENTIALS)
def test_json_and_back(name) -> None:
    potential = POTENTIALS[name]
    described = json.loads(json.dumps(spec(potential)))
    assert described["name"] == name
    again = from_spec(described, TRUSTED)
    assert again == potential
    assert again.log_upper_bound == potential.log_upper_bound
    assert spec(again) == described


def test_a_bound_potential_is_described_without_its_model(lm, batch) -> None:
    bound = POTENTIALS["function"].bind(lm)
    again = from_spec(json.loads(json.dumps(spec(bound))), TRUSTED)
    assert torch.equal(evaluate(again.bind(lm), *batch), evaluate(bound, *batch))


def test_functions_that_cannot_be_found_again_are_refused() -> None:
    def local(texts: list[str]) -> list[float]:
        return shout(texts)

    for function in (local, lambda texts: shout(texts)):
        with pytest.raises(ConfigError, match="cannot be found again from a run folder"):
            spec(Function(function))


def test_a_function_of_main_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(shout, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "shout", shout, raising=False)  # as in a user's script
    with pytest.raises(ConfigError, match="__main__"):
        spec(Function(shout))


def test_a_loaded_model_has_no_json_form() -> None:
    with pytest.raises(ConfigError, match="pass the potential in code"):
        spec(Classifier((torch.nn.Linear(1, 1), object()), "toxic"))


class Unregistered(BasePotential):
    def log_phi(self, prompts: list[Tensor], tokens: Tensor) -> Tensor:
        return torch.zeros(len(tokens))


def test_an_unregistered_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="Unregistered cannot be written"):
        spec(Unregistered() * Jigsaw())


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"name": "jigsw"}, "did you mean 'jigsaw'"),
        ({"label": "toxic"}, "needs a 'name'"),
        ({"name": "jigsaw", "gamma": 1}, "no gamma; it takes batch_size, beta, label, of"),
        ({"name": "regex"}, "pattern"),
        ({"name": "classifier", "model": ["a", "b"], "label": "toxic"}, "model must be a name"),
        ({"name": "function", "function": {"import": "math:sin"}}, "if you trust it, say so by name"),
        ({"name": "function", "function": {"import": "no.such:thing"}}, "cannot be imported"),
        ({"name": "function", "function": {"import": "math:nothing"}}, "cannot be imported"),
    ],
)
def test_a_description_that_does_not_fit_says_why(described, message) -> None:
    with pytest.raises(ConfigError, match=message):
        from_spec(described, TRUSTED)
