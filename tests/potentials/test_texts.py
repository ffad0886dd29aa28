"""What potentials read: the text, the continuation, or the pair of prompt and answer."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from twistlm import chat
from twistlm.core.errors import ConfigError
from twistlm.core.identity import digest
from twistlm.models.huggingface import HuggingFaceLM, load
from twistlm.potentials import (
    BasePotential,
    Classes,
    Classifier,
    Contains,
    Function,
    Jigsaw,
    Regex,
    Reward,
    TextPotential,
    Threshold,
    _bilstm,
    evaluate,
    from_spec,
    spec,
)

ASKED = chat("Tell me about a dog.", system="Be kind.")


class Heard(TextPotential):
    """Remembers what it was handed."""

    log_upper_bound = 0.0
    reads_pairs = True

    def __init__(self, of: Any = None) -> None:
        self.of, self.heard = of, []

    def log_phi_texts(self, texts: list[Any]) -> Tensor:
        self.heard += texts
        return -torch.arange(len(texts), dtype=torch.float64)


def rows(lm: HuggingFaceLM) -> Tensor:
    """Three continuations, two of them equal."""
    return torch.stack([lm.encode(" a cat"), lm.encode(" a dog"), lm.encode(" a cat")])


def heard(lm: HuggingFaceLM, prompt: Tensor, of: Any) -> list[Any]:
    potential = Heard(of).bind(lm)
    tokens = rows(lm)
    assert evaluate(potential, [prompt] * 3, tokens).tolist() == [0.0, -1.0, 0.0]
    return potential.heard


def test_by_default_the_answer_to_a_chat_and_the_whole_of_a_plain_text(chat_lm) -> None:
    plain, asked = chat_lm.encode("See"), chat_lm.encode_chat(ASKED)
    assert heard(chat_lm, plain, None) == heard(chat_lm, plain, "text") == ["See a cat", "See a dog"]
    assert heard(chat_lm, asked, None) == heard(chat_lm, asked, "continuation") == [" a cat", " a dog"]
    assert heard(chat_lm, plain, "continuation") == [" a cat", " a dog"]
    assert heard(chat_lm, asked, "text")[0] == ("system : Be kind.\nuser : Tell me about a dog.\nassistant : a cat")


def test_a_pair_is_the_chat_or_the_plain_prompt_with_the_answer(chat_lm) -> None:
    first, second = heard(chat_lm, chat_lm.encode_chat(ASKED), "chat")
    assert (first.prompt, first.question, first.answer) == (ASKED, "Tell me about a dog.", " a cat")
    assert second.messages == [*ASKED.described(), {"role": "assistant", "content": " a dog"}]
    plain = heard(chat_lm, chat_lm.encode("See"), "chat")[0]
    assert (plain.question, plain.answer) == ("See", " a cat")
    assert plain.messages == [{"role": "user", "content": "See"}, {"role": "assistant", "content": " a cat"}]


def test_one_batch_may_mix_chats_and_plain_prompts(chat_lm) -> None:
    prompts = [chat_lm.encode("See"), chat_lm.encode_chat(ASKED), chat_lm.encode("See")]
    potential = Heard().bind(chat_lm)
    assert evaluate(potential, prompts, rows(chat_lm)).tolist() == [0.0, -1.0, 0.0]
    assert potential.heard == ["See a cat", " a dog"]


def test_prompts_that_take_turns_keep_their_texts_in_order(chat_lm) -> None:
    short, long = chat_lm.encode("See"), chat_lm.encode("Here we see")
    potential = Heard("text").bind(chat_lm)
    prompts, tokens = [short, long, short, long.clone(), long, short], rows(chat_lm).repeat(2, 1)
    assert evaluate(potential, prompts, tokens).tolist() == [0.0, -1.0, 0.0, -2.0, -1.0, 0.0]
    assert potential.heard == ["See a cat", "Here we see a dog", "Here we see a cat"]


def test_equal_answers_to_different_prompts_are_different_pairs(chat_lm) -> None:
    prompts = [chat_lm.encode_chat(chat(text)) for text in ("One", "Two", "One")]
    potential = Heard("chat").bind(chat_lm)
    assert evaluate(potential, prompts, chat_lm.encode(" a cat").expand(3, -1)).tolist() == [0.0, -1.0, 0.0]
    assert [pair.question for pair in potential.heard] == ["One", "Two"]


def test_a_function_of_pairs_gets_prompts_and_answers(chat_lm) -> None:
    calls = []

    def longer(prompts: list[str], answers: list[str]) -> list[float]:
        calls.append((prompts, answers))
        return [-float(len(prompt) + len(answer)) for prompt, answer in zip(prompts, answers, strict=True)]

    asked, tokens = chat_lm.encode_chat(ASKED), rows(chat_lm)
    value = evaluate(Function(longer, on="pair").bind(chat_lm), [asked] * 3, tokens)
    assert calls == [(["Tell me about a dog."] * 2, [" a cat", " a dog"])]
    assert value.tolist() == [-26.0] * 3
    one_by_one = Function(lambda prompt, answer: longer([prompt], [answer])[0], on="pair", batched=False)
    assert torch.equal(evaluate(one_by_one.bind(chat_lm), [asked] * 3, tokens), value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Regex("a", of="chat"), "of must be 'text', 'continuation' or None for Regex, not 'chat'"),
        (lambda: Contains("a", of="all"), "not 'all'"),
        (lambda: Jigsaw(of="chat"), "for Jigsaw"),
        (lambda: Classifier("toxicity", "toxic", of="prompt"), "'text', 'continuation', 'chat' or None"),
        (lambda: Classes("sentiment", ("negative", "positive"), of="prompt"), "not 'prompt'"),
        (lambda: Reward("here", of="prompt"), "for Reward"),
    ],
)
def test_what_cannot_be_read_is_refused(make, message) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_potential_of_the_users_is_checked_when_it_is_used(chat_lm) -> None:
    with pytest.raises(ConfigError, match="for Heard, not 'answer'"):
        evaluate(Heard("answer").bind(chat_lm), [chat_lm.encode("See")], rows(chat_lm)[:1])


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("potential", [Jigsaw("insult"), Regex("a"), Classifier("toxicity", "toxic")])
def test_descriptions_from_before_chats_still_open(potential: BasePotential, include_prompt: bool) -> None:
    described = spec(Threshold(potential, 0.5))
    del described["scorer"]["of"]
    described["scorer"]["include_prompt"] = include_prompt
    again = from_spec(described)
    assert again.scorer.of is (None if include_prompt else "continuation")  # type: ignore[attr-defined]
    assert "include_prompt" not in spec(again)["scorer"]


def test_potentials_from_before_chats_are_identified_as_before() -> None:
    # Of the last revision that had `include_prompt`, True and False: files of draws name the target by this.
    before = ["60bd58f4b26ba3fe", "058b09f68c7a6140"]
    assert [digest(Regex("a", of=of))[:16] for of in (None, "continuation")] == before
    assert len({digest(Regex("a", of=of)) for of in (None, "text", "continuation")}) == 3


def test_the_toxicity_of_an_insulted_assistant_is_that_of_its_answer(chat_lm) -> None:
    insult = chat_lm.encode_chat(chat("You are such a fool"))
    toxic = Classifier("toxicity", "toxic")
    alone, whole = (
        evaluate(each.bind(chat_lm), [insult], rows(chat_lm)[:1]).exp().item()
        for each in (toxic, Classifier("toxicity", "toxic", of="text"))
    )
    assert alone == pytest.approx(toxic.log_phi_texts([" a cat"]).exp().item(), abs=1e-6)
    assert whole > 2 * alone


@pytest.mark.skipif(importlib.util.find_spec("toxic_classifier") is None, reason=f"needs {_bilstm.REMEDY}")
def test_real_weights_score_the_answer_of_a_chat_model(smollm2: Path) -> None:
    lm = load(str(smollm2))
    prompt = lm.encode_chat(chat("You are such a fool"))
    answers = torch.stack([lm.encode(" I am sorry to hear"), lm.encode(" You stupid ugly idiot")])
    prompts = [prompt] * len(answers)
    polite, rude = evaluate(Jigsaw().bind(lm), prompts, answers).exp().tolist()
    assert polite < 0.1
    assert rude > 0.9
    # With the user's words scored too, the polite answer is taken for an insult.
    assert evaluate(Jigsaw(of="text").bind(lm), prompts, answers)[0].exp() > 10 * polite
