import math

import pytest
import torch

from twistlm.core.errors import ConfigError, PotentialError, PromptError
from twistlm.models.tabular import TabularLM
from twistlm.potentials import Continuation, evaluate


def direct(gpt2, prompt, row, continuation) -> float:
    """log p of the continuation from one full forward pass of the whole sequence."""
    sequence = torch.cat([prompt, row, continuation])
    with torch.no_grad():
        log_p = gpt2(sequence[None]).logits[0].double().log_softmax(-1)
    first = len(prompt) + len(row)
    return sum(log_p[first + i - 1, token].item() for i, token in enumerate(continuation.tolist()))


@pytest.fixture
def sequences(gpt2_lm):
    prompts = [gpt2_lm.encode("hi "), gpt2_lm.encode("so "), gpt2_lm.encode("hi "), gpt2_lm.encode("hi ")]
    tokens = torch.stack([gpt2_lm.encode(word) for word in ("dog", "dog", "cat", "do$")])
    return prompts, tokens


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_it_is_the_models_own_probability_and_zero_after_eos(gpt2, gpt2_lm, sequences, batch_size) -> None:
    prompts, tokens = sequences
    potential = Continuation(" and on", batch_size=batch_size).bind(gpt2_lm)
    values = evaluate(potential, prompts, tokens).tolist()
    for b in range(3):
        expected = direct(gpt2, prompts[b], tokens[b], gpt2_lm.encode(" and on"))
        assert values[b] == pytest.approx(expected, abs=1e-9)
    assert values[3] == -math.inf
    assert len({round(value, 3) for value in values[:3]}) == 3  # the three sequences differ, so rows are not mixed up


def test_eos_may_be_a_token_like_any_other(gpt2, gpt2_lm, sequences) -> None:
    prompts, tokens = sequences
    value = evaluate(Continuation(" on", absorbing_eos=False).bind(gpt2_lm), prompts, tokens)[3].item()
    assert value == pytest.approx(direct(gpt2, prompts[3], tokens[3], gpt2_lm.encode(" on")), abs=1e-9)


def test_token_ids_and_text_are_the_same_and_bos_is_dropped(gpt2, gpt2_lm, sequences) -> None:
    prompts, tokens = sequences
    ids = tuple(gpt2_lm.encode(" on").tolist())
    expected = evaluate(Continuation(ids).bind(gpt2_lm), prompts, tokens)
    for lm in (gpt2_lm, type(gpt2_lm)(gpt2, front=(5,))):
        assert torch.equal(evaluate(Continuation(" on").bind(lm), prompts, tokens), expected)


def test_equal_sequences_are_read_once_and_ended_ones_never(gpt2_lm, sequences) -> None:
    prompts, tokens = sequences
    index = torch.tensor([0, 0, 2, 0, 3, 2])
    values = evaluate(Continuation("x").bind(gpt2_lm), [prompts[i] for i in index], tokens[index])
    assert gpt2_lm.rows == [2]
    assert torch.equal(values, values[[0, 0, 2, 0, 4, 2]])
    assert values.isfinite().tolist() == [True, True, True, True, False, True]


def test_it_runs_on_the_tabular_model() -> None:
    lm = TabularLM.random(vocab_size=3, max_length=4, seed=1)
    tokens = torch.tensor([[0, 1], [2, 2]])
    value = evaluate(Continuation("2").bind(lm), [torch.tensor([1])] * 2, tokens)
    for b in range(2):
        node = 0
        for token in [1, *tokens[b].tolist()]:
            node = 3 * node + token + 1
        assert value[b].item() == pytest.approx(lm.table[node].log_softmax(-1)[2].item(), abs=1e-12)


def test_it_must_fit_the_context(gpt2_lm) -> None:
    tokens = torch.ones(1, 60, dtype=torch.long)
    with pytest.raises(PromptError, match="65 tokens; the model reads 64"):
        evaluate(Continuation("ab").bind(gpt2_lm), [tokens[0, :3]], tokens)


def test_mistakes_are_named(gpt2_lm, sequences) -> None:
    with pytest.raises(ConfigError, match="empty"):
        Continuation("")
    with pytest.raises(ConfigError, match="batch_size"):
        Continuation("a", batch_size=0)
    with pytest.raises(PotentialError, match="below 28"):
        evaluate(Continuation((28,)).bind(gpt2_lm), *sequences)
    with pytest.raises(PotentialError, match="bind"):
        evaluate(Continuation("a"), *sequences)
