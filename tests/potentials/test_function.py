import math

import pytest
import torch

from twistlm.errors import ConfigError, PotentialError
from twistlm.models.tabular import TabularLM
from twistlm.potentials import Function, evaluate


def test_log_potential_potential_and_single_text_agree(lm, batch) -> None:
    phi = {"hi dog": 0.5, "hi cat": 0.25}
    functions = [
        Function(lambda texts: [math.log(phi[text]) for text in texts]),
        Function(lambda texts: torch.tensor([phi[text] for text in texts], dtype=torch.float64), log=False),
        Function(lambda text: phi[text], log=False, batched=False),
    ]
    expected = torch.tensor([0.5, 0.25, 0.5], dtype=torch.float64).log()
    for function in functions:
        torch.testing.assert_close(evaluate(function.bind(lm), *batch), expected, rtol=0, atol=1e-15)


def test_python_floats_keep_their_float64_digits(lm, batch) -> None:
    value = -0.1234567890123456
    assert evaluate(Function(lambda texts: [value] * len(texts)).bind(lm), *batch)[0].item() == value


def test_a_function_on_tokens_runs_on_the_tabular_model() -> None:
    tabular = TabularLM.random(vocab_size=3, max_length=3, seed=0)
    potential = Function(lambda prompts, tokens: -tokens.sum(1), on="tokens", log_upper_bound=0.0).bind(tabular)
    tokens = torch.tensor([[0, 0], [1, 2]])
    assert evaluate(potential, [torch.tensor([1])] * 2, tokens).tolist() == [0.0, -3.0]


def test_zero_is_a_hard_constraint_and_a_negative_potential_an_error(lm, batch) -> None:
    assert evaluate(Function(lambda texts: [0.0] * 2, log=False).bind(lm), *batch).tolist() == [-math.inf] * 3
    with pytest.raises(PotentialError, match="not be negative"):
        evaluate(Function(lambda texts: [-1.0] * 2, log=False).bind(lm), *batch)


def test_the_wrong_number_of_values_is_an_error(lm, batch) -> None:
    with pytest.raises(PotentialError, match=r"returned shape \[3\] for 2 texts"):
        evaluate(Function(lambda texts: [0.0] * 3).bind(lm), *batch)


async def coroutine(texts: list[str]) -> list[float]:
    return [0.0 for _ in texts]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"function": 3}, "callable"),
        ({"function": coroutine}, "asyncio.run"),
        ({"function": len, "on": "word"}, "'text' or 'tokens'"),
        ({"function": len, "on": "tokens", "batched": False}, "batched=False is for texts"),
    ],
)
def test_contradictory_settings_are_refused(arguments, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Function(**arguments)
