"""Classifiers of pairs and reward models: tiny real ones with random weights, with and without a chat template."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid

from tests.scorers import reference, save
from twistlm import chat
from twistlm.core.errors import ConfigError, PotentialError, PromptError, UpperBoundError
from twistlm.models.huggingface import HuggingFaceLM
from twistlm.potentials import Classifier, Reward, Threshold, evaluate, from_spec, spec
from twistlm.testing import check_potential

# Writes the special tokens itself, which the tokenizer would otherwise add.
TEMPLATE = (
    "[CLS]{% for m in messages %} {{ m.role }} {{ m.content }} [SEP]{% endfor %}"
    "{% if add_generation_prompt %} assistant{% endif %}"
)
ASKED = chat("hi dog", system="a", history=[("so", "cats")])
ANSWERS = (" cats", " so dog dog", " cats")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("pairs"), ["rude", "kind"], max_length=24)


@pytest.fixture(scope="module")
def templated(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("templated"), ["rude", "kind"], max_length=24, chat_template=TEMPLATE)


@pytest.fixture(scope="module")
def rewards(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("rewards"), ["LABEL_0"], max_length=24)


@pytest.fixture(scope="module")
def chat_rewards(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("chat_rewards"), ["LABEL_0"], max_length=24, chat_template=TEMPLATE)


def scored(lm: HuggingFaceLM, potential: Any, prompt: torch.Tensor) -> torch.Tensor:
    longest = max(lm.encode(answer).numel() for answer in ANSWERS)
    tokens = torch.full((len(ANSWERS), longest), lm.eos_token_id)
    for row, answer in zip(tokens, ANSWERS, strict=True):
        row[: lm.encode(answer).numel()] = lm.encode(answer)
    return evaluate(potential.bind(lm), [prompt] * len(ANSWERS), tokens)


def assert_equal(value: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.max() - expected.min() > 1e-3  # a constant would prove nothing
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-5)


def rendered(folder: Path, messages: list[str]) -> torch.Tensor:
    """Logits of each text of a template, special tokens and all."""
    return reference(folder, messages, add_special_tokens=False)


def test_a_pair_is_what_the_user_said_last_and_the_answer(pairs, chat_lm) -> None:
    expected = reference(pairs, [("hi dog", answer) for answer in ANSWERS]).log_softmax(-1)[:, 1]
    classifier = Classifier(pairs, "kind", of="chat")
    assert_equal(scored(chat_lm, classifier, chat_lm.encode_chat(ASKED)), expected)
    assert_equal(scored(chat_lm, classifier, chat_lm.encode("hi dog")), expected)


@pytest.mark.parametrize("batch_size", [1, 32])
def test_a_scorer_with_a_chat_template_reads_the_whole_chat(templated, chat_lm, batch_size) -> None:
    whole = [f"[CLS] system a [SEP] user so [SEP] assistant cats [SEP] user hi dog [SEP] assistant{a} [SEP]"
             for a in ANSWERS]  # fmt: skip
    classifier = Classifier(templated, "kind", beta=2.0, of="chat", batch_size=batch_size)
    expected = 2 * rendered(templated, whole).log_softmax(-1)[:, 1]
    assert_equal(scored(chat_lm, classifier, chat_lm.encode_chat(ASKED)), expected)
    plain = [f"[CLS] user hi dog [SEP] assistant{a} [SEP]" for a in ANSWERS]
    expected = 2 * rendered(templated, plain).log_softmax(-1)[:, 1]
    assert_equal(scored(chat_lm, classifier, chat_lm.encode("hi dog")), expected)


def test_texts_are_not_touched_by_a_template(templated, chat_lm) -> None:
    expected = reference(templated, list(ANSWERS)).log_softmax(-1)[:, 1]
    assert_equal(scored(chat_lm, Classifier(templated, "kind"), chat_lm.encode_chat(ASKED)), expected)


def test_a_chat_that_is_too_long_keeps_its_answer(templated, chat_lm) -> None:
    asked = chat(" ".join(["dog"] * 40))
    kept = " ".join(["dog"] * 20)
    whole = [f"{kept} [SEP] assistant so [SEP]", f"{kept} [SEP] assistant a [SEP]"]
    tokens = torch.stack([chat_lm.encode(" so"), chat_lm.encode(" a")])
    value = evaluate(Classifier(templated, 1, of="chat").bind(chat_lm), [chat_lm.encode_chat(asked)] * 2, tokens)
    assert_equal(value, rendered(templated, whole).log_softmax(-1)[:, 1])


def test_each_distinct_pair_is_scored_once(pairs, chat_lm) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(pairs)
    rows: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    classifier = Classifier((model, AutoTokenizer.from_pretrained(pairs)), "kind", of="chat")
    scored(chat_lm, classifier, chat_lm.encode_chat(ASKED))
    assert rows == [2]


def test_a_scorer_that_cannot_tell_prompt_from_answer_says_so_at_once(pairs, chat_lm) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(pairs)
    # The tokenizer of the story model puts nothing between two texts, as GPT-2's does.
    chat_lm.tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="puts nothing between two texts; give it a chat_template, or score of="):
        Classifier((model, chat_lm.tokenizer), "kind", of="chat").bind(chat_lm)
    Classifier((model, chat_lm.tokenizer), "kind").bind(chat_lm)


def test_a_pair_without_a_prompt_is_one_line(pairs, chat_lm) -> None:
    prompt = torch.tensor([chat_lm.eos_token_id])
    for potential in (Classifier(pairs, "kind", of="chat"), Classifier(pairs, "kind", of="chat") ** 2.0):
        with pytest.raises(PromptError, match="scores an answer to a prompt, and this prompt has no text") as caught:
            scored(chat_lm, potential, prompt)
        assert "\n" not in str(caught.value)


def test_a_template_that_refuses_a_chat_is_one_line(tmp_path, chat_lm) -> None:
    refuses = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
    )
    folder = save(tmp_path, ["LABEL_0"], chat_template=refuses)
    with pytest.raises(PromptError, match=r"refuses these messages \(no system\)"):
        scored(chat_lm, Reward(folder), chat_lm.encode_chat(ASKED))


# --- Reward models --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [1.0, 0.5, -2.0])
def test_a_reward_is_exponentiated(rewards, chat_lm, beta) -> None:
    expected = beta * reference(rewards, [("hi dog", answer) for answer in ANSWERS])[:, 0]
    reward = Reward(rewards, beta)
    assert reward.log_upper_bound is None
    assert_equal(scored(chat_lm, reward, chat_lm.encode_chat(ASKED)), expected)
    assert expected.max() > 0 or beta < 0  # above what a probability could be


def test_a_reward_model_with_a_template_reads_the_chat(chat_rewards, chat_lm) -> None:
    whole = [f"[CLS] system a [SEP] user so [SEP] assistant cats [SEP] user hi dog [SEP] assistant{a} [SEP]"
             for a in ANSWERS]  # fmt: skip
    assert_equal(scored(chat_lm, Reward(chat_rewards), chat_lm.encode_chat(ASKED)), rendered(chat_rewards, whole)[:, 0])


def test_a_reward_of_texts(rewards, chat_lm) -> None:
    asked = chat_lm.encode_chat(ASKED)
    alone = reference(rewards, list(ANSWERS))[:, 0]
    assert_equal(scored(chat_lm, Reward(rewards, of=None), asked), alone)
    assert_equal(scored(chat_lm, Reward(rewards, of="continuation"), asked), alone)
    whole = reference(rewards, [f"hi dog{answer}" for answer in ANSWERS])[:, 0]
    assert_equal(scored(chat_lm, Reward(rewards, of="text"), chat_lm.encode("hi dog")), whole)


def test_the_reward_is_the_pair_classifiers_logit(rewards, chat_lm) -> None:
    asked = chat_lm.encode_chat(ASKED)
    reward = scored(chat_lm, Reward(rewards), asked)
    classifier = Classifier(rewards, "good", logit_means="label", of="chat")
    assert_equal(scored(chat_lm, classifier, asked), logsigmoid(reward))
    eta = reward.mean().item()
    passed = scored(chat_lm, Threshold(Reward(rewards, 3.0), eta, on="logit"), asked)
    assert passed.exp().tolist() == (reward >= eta).double().tolist()


def test_a_decoder_that_pads_with_another_token_is_read_to_its_end(tmp_path, chat_lm) -> None:
    from transformers import AutoModelForSequenceClassification, LlamaConfig

    config = LlamaConfig(
        vocab_size=chat_lm.vocab_size, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, num_labels=1, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(20)
    model.save_pretrained(tmp_path)
    chat_lm.tokenizer.save_pretrained(tmp_path)
    many, one = Reward(tmp_path), Reward(tmp_path, batch_size=1)
    asked = chat_lm.encode_chat(ASKED)
    assert_equal(scored(chat_lm, many, asked), scored(chat_lm, one, asked))


def test_a_bound_that_is_stated_is_held(rewards, chat_lm) -> None:
    asked = chat_lm.encode_chat(ASKED)
    top = scored(chat_lm, Reward(rewards), asked).max().item()
    scored(chat_lm, Reward(rewards, log_upper_bound=top + 0.1), asked)
    with pytest.raises(UpperBoundError, match="Reward returned log φ"):
        scored(chat_lm, Reward(rewards, log_upper_bound=top - 0.1), asked)


@pytest.mark.parametrize("folder", ["rewards", "chat_rewards"])
def test_laws(folder, request, chat_lm) -> None:
    check_potential(Reward(request.getfixturevalue(folder)), chat_lm)


def test_a_description_of_a_reward(rewards) -> None:
    reward = Reward(rewards, -2.0, "text", log_upper_bound=3.0)
    assert from_spec(spec(reward)) == reward
    assert reward.log_upper_bound == 3.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 0.0}, "beta must not be 0"),
        ({"beta": float("nan")}, "beta must be positive and finite"),
        ({"log_upper_bound": float("inf")}, "log_upper_bound must be finite"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_settings_are_checked_before_anything_is_loaded(arguments, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Reward("nowhere", **arguments)


def test_a_classifier_is_no_reward_model(pairs, chat_lm) -> None:
    with pytest.raises(ConfigError, match="has 2 labels and a reward model has one; use Classifier"):
        Reward(pairs).bind(chat_lm)


def test_an_unbound_reward_says_so(rewards) -> None:
    with pytest.raises(PotentialError, match="not bound to a model"):
        evaluate(Reward(rewards), [torch.tensor([1])], torch.tensor([[2]]))
