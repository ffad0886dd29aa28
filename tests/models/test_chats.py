from pathlib import Path

import pytest
import torch

import twistlm
from twistlm.core.errors import ModelError, PromptError
from twistlm.models.chats import Chat, ChatReader, Message, chat, chat_of, encode_chat
from twistlm.models.huggingface import HuggingFaceLM, load
from twistlm.models.tabular import TabularLM

# Writes its own special token in front, as templates do.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('a system message comes first') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture
def stories() -> HuggingFaceLM:
    """A model of its own for every test: it remembers chats."""
    lm = load("stories")
    lm.tokenizer.chat_template = TEMPLATE
    return lm


def test_the_public_function_makes_a_chat() -> None:
    made = twistlm.chat(
        "And now?", system="Be brief.", history=[("Hi", "Hello."), {"role": "user", "content": "Still there?"}]
    )
    assert made.described() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Still there?"},
        {"role": "user", "content": "And now?"},
    ]
    assert Chat(made.described()) == made
    assert hash(Chat(made.described())) == hash(made)
    assert made.question == "And now?"
    assert twistlm.chat("Hi") == Chat((Message("user", "Hi"),))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: chat(""), "content '' of a message from the user is empty"),
        (lambda: chat(" \n"), "is empty"),
        (lambda: chat("Hi", system=""), "from the system is empty"),
        (lambda: chat("caf\udce9"), "is not text"),
        (lambda: chat(3), "content 3"),
        (lambda: chat("Hi", history=["ab"]), "history holds 'ab'"),
        (lambda: chat("Hi", history=[("a", "b", "c")]), "pairs"),
        (lambda: chat("Hi", history=[{"role": "bot", "content": "x"}]), "role 'bot'.*system, user, assistant"),
        (lambda: chat("Hi", history=[{"content": "x"}]), "give a role and a content"),
        (lambda: Chat(()), "last message of a chat is missing"),
        (lambda: Chat((Message("user", "Hi"), Message("assistant", "Yes"))), "is the assistant's"),
        (lambda: Chat("Hi"), "must be a list, not str"),
    ],
)
def test_what_is_no_chat_is_refused(make, message) -> None:
    with pytest.raises(PromptError, match=message):
        make()


def test_tokens_are_the_templates_own_and_the_model_knows_them_again(stories) -> None:
    asked = chat("Hi", system="Be brief.")
    tokens = encode_chat(stories, asked)
    bos = stories.tokenizer.bos_token
    text = f"{bos}system: Be brief.\nuser: Hi\nassistant:"
    assert tokens.tolist() == stories.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokens.dtype == torch.long
    assert chat_of(stories, tokens.clone()) == asked
    assert chat_of(stories, tokens[:-1]) is None
    assert chat_of(stories, stories.encode("Once upon a time")) is None


def test_a_chat_that_another_model_object_has_read_is_not_taken_for_a_plain_prompt(stories) -> None:
    """Its answer would be scored with what the user said: found when KL(q‖σ) came out below 0."""
    tokens = encode_chat(stories, chat("Hi", system="Be brief."))
    other = ChatReader(stories.tokenizer, "other")
    with pytest.raises(PromptError, match="has not read it as a chat"):
        other.of(tokens)
    assert other.of(tokens[:-1]) is None
    assert other.encode(chat("Hi", system="Be brief.")).equal(tokens)
    assert other.of(tokens) == chat("Hi", system="Be brief.")


def test_a_chat_that_the_template_refuses_is_one_line(stories) -> None:
    with pytest.raises(PromptError, match=r"refuses these messages \(a system message comes first\)") as caught:
        encode_chat(stories, chat("Hi", history=[("a", "b"), {"role": "system", "content": "c"}]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "template", ["{% for i in range(10**9) %}{{ i }}{% endfor %}", "{{ 1 / 0 }}", "{{ messages[7].x.y }}"]
)
def test_a_template_that_goes_wrong_is_one_line(template: str) -> None:
    lm = load("stories")
    lm.tokenizer.chat_template = template
    with pytest.raises(PromptError, match="the chat template refuses these messages") as caught:
        encode_chat(lm, chat("Hi"))
    assert "\n" not in str(caught.value)


def test_a_model_without_a_template_says_what_to_do() -> None:
    with pytest.raises(ModelError, match="'stories' has no chat template: give a plain prompt, or set chat_template"):
        encode_chat(load("stories"), chat("Hi"))


def test_a_model_of_the_bare_protocol_reads_plain_prompts_only() -> None:
    tabular = TabularLM.random(vocab_size=3, max_length=3, seed=0)
    assert chat_of(tabular, torch.tensor([1])) is None
    with pytest.raises(ModelError, match="TabularLM reads no chats; give a plain prompt"):
        encode_chat(tabular, chat("Hi"))


def test_a_real_chat_model(smollm2: Path) -> None:
    lm = load(str(smollm2))
    asked = chat("Who are you?")
    tokens = lm.encode_chat(asked)
    # Its template tells a model who was told nothing who it is.
    assert lm.tokenizer.decode(tokens) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (tokens == lm.tokenizer.convert_tokens_to_ids("<|im_start|>")).sum() == 3
    assert lm.chat_of(tokens) == asked
    assert not torch.equal(lm.encode_chat(chat("Who are you?", system="You are a pirate.")), tokens)


def test_chats_that_were_not_asked_about_for_long_are_forgotten(stories, monkeypatch) -> None:
    """A server reads chats without end, those included that it refuses."""
    monkeypatch.setattr("twistlm.models.chats.REMEMBERED", 1000)
    reader, again = ChatReader(stories.tokenizer, "stories"), chat("Hi")
    kept = reader.encode(again)
    first = reader.encode(chat("0" * 100))
    for number in range(1, 40):
        reader.encode(chat(str(number).rjust(100, "0")))
        reader.encode(chat(str(number).rjust(100, "0")))
        # The very same object, which counted as often as it was read.
        for _ in range(20):
            assert reader.encode(again).equal(kept)
        assert reader.of(kept) == chat("Hi")
    assert 9 <= len(reader._read) <= 11
    with pytest.raises(PromptError, match="has not read it as a chat"):
        reader.of(first)
