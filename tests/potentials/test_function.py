import math

import pytest
import torch

from tests.cases import cases
from twistlm.core.errors import ConfigError, PotentialError
from twistlm.core.rng import Rng
from twistlm.models.tabular import TabularLM
from twistlm.potentials import Function, Threshold, evaluate
from twistlm.sampling.exact import collect as exact
from twistlm.sampling.exact.budget import Budget
from twistlm.sampling.sampler import Sampler, WorkerContext
from twistlm.sampling.twisted import TwistedLM


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
        ({"function": len, "on": "word"}, "'text', 'pair' or 'tokens'"),
        ({"function": len, "of": "chat"}, "contradict each other; pairs are on='pair'"),
        ({"function": len, "on": "pair", "of": "text"}, "contradict each other"),
        ({"function": len, "of": "prompt"}, "of must be 'text', 'continuation', 'chat' or None"),
        ({"function": len, "on": "tokens", "batched": False}, "batched=False is for texts"),
    ],
)
def test_contradictory_settings_are_refused(arguments, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Function(**arguments)


def spoiling(prompts, tokens):  # type: ignore[no-untyped-def]
    """φ of tokens that overwrites all that it was given."""
    values = -tokens.sum(1).double()
    tokens.zero_()
    for prompt in prompts:
        prompt.fill_(2)
    return values


def test_a_function_that_changes_its_arguments_changes_nothing_of_the_samplers() -> None:
    tabular = TabularLM.random(vocab_size=3, max_length=4, seed=0)
    kind, prompt = TwistedLM(tabular, None, "ignore"), torch.tensor([1])
    read = Function(lambda prompts, tokens: -tokens.sum(1).double(), on="tokens", log_upper_bound=0.0).bind(tabular)
    spoils = Function(spoiling, on="tokens", log_upper_bound=0.0).bind(tabular)
    for potential in (spoils, spoils * spoils, spoils**2.0, Threshold(spoils, 0.1)):
        evaluate(potential, [prompt] * 2, torch.tensor([[1, 2], [0, 1]]))
    mine, truth = (
        exact.collect(Rng(0), WorkerContext(Sampler(kind, each, 3), cases([prompt])), Budget(512), target="t")
        for each in (spoils, read)
    )
    assert prompt.tolist() == [1]
    assert len(mine.exact.samples.tokens.unique(dim=0)) > 8
    for name in ("tokens", "log_p", "log_phi"):
        assert getattr(mine.draws, name).equal(getattr(truth.draws, name))
    assert mine.accepted.equal(truth.accepted)
    one, other = (Sampler(kind, each, 3).smc(Rng(1), cases([prompt]), 64) for each in (spoils, read))
    assert one.particles.tokens.equal(other.particles.tokens)
    assert one.log_phi.equal(other.log_phi)


def test_a_function_that_fails_on_one_sequence_cannot_change_the_others() -> None:
    def fails(prompts, tokens):  # type: ignore[no-untyped-def]
        bad = bool((tokens == 2).any())
        spoiling(prompts, tokens)
        if bad:
            raise RuntimeError("two")
        return torch.zeros(len(tokens))

    tokens, prompts = torch.tensor([[0, 1], [1, 2], [1, 1]]), [torch.tensor([1])] * 3
    with pytest.raises(PotentialError, match=r"two on the tokens \[1, 1, 2\]"):
        evaluate(Function(fails, on="tokens"), prompts, tokens)
    assert tokens.tolist() == [[0, 1], [1, 2], [1, 1]]
    assert prompts[0].tolist() == [1]


def test_a_result_that_is_overwritten_later_is_not_ours() -> None:
    buffer = torch.zeros(2, dtype=torch.float64)
    potential = Function(lambda prompts, tokens: buffer.copy_(-tokens.sum(1)), on="tokens")
    first = evaluate(potential, [torch.tensor([1])] * 2, torch.tensor([[1], [2]]))
    evaluate(potential, [torch.tensor([1])] * 2, torch.tensor([[0], [0]]))
    assert first.tolist() == [-1.0, -2.0]
