"""A twist among the logits processors of transformers."""

import re
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList

import twistlm
from tests.constrained import EOS, full, target, truth
from twistlm import Target
from twistlm.core.errors import ConfigError
from twistlm.integrations import TwistProcessor
from twistlm.models.bundled import folder
from twistlm.potentials import Classifier, Regex

FOLDER = folder("stories")
PROMPTS = ["Once upon a time, there was a", "The old man saw"]


def test_it_is_the_proposal_exactly() -> None:
    """Token by token, log p₀ + log ψ makes the q that the sampler has, and nothing that is ruled out is left."""
    of = target(full("[01]*1"), num_tokens=3)
    exact, processor = truth(of), TwistProcessor(of)
    prompt, log_q = of.prompt_tokens, torch.zeros(len(exact.tokens), dtype=torch.float64)
    for number, tokens in enumerate(exact.tokens):
        if not bool(exact.log_sigma[number].isfinite()):
            continue
        for t, token in enumerate(tokens):
            before = torch.cat([prompt, tokens[:t]]).unsqueeze(0)
            logits = of.lm.logits(of.lm.features([prompt], tokens.unsqueeze(0))[:, t])
            scores = torch.log_softmax(processor(before, logits.double()), -1)
            if t == 0 or int(tokens[t - 1]) != of.lm.eos_token_id:
                log_q[number] += scores[0, int(token)]
    possible = exact.log_sigma.isfinite()
    torch.testing.assert_close(log_q[possible], exact.log_q(of.twisted())[possible], rtol=0, atol=1e-5)


def test_generate_of_transformers_never_leaves_the_constraint() -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(FOLDER).eval(), AutoTokenizer.from_pretrained(FOLDER)
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.pad_token or tokenizer.eos_token
    pattern = " [a-z]+ (girl|boy|dog)"
    of = Target("stories", Regex(pattern, mode="fullmatch", constrain=True), PROMPTS[0], 4)
    processor = TwistProcessor(of, pad_token_id=tokenizer.pad_token_id)
    inputs, how = tokenizer(PROMPTS, return_tensors="pt", padding=True), {"do_sample": True, "top_k": 0}
    torch.manual_seed(0)
    for _ in range(2):
        out = model.generate(
            **inputs, **how, max_new_tokens=4, num_return_sequences=4, logits_processor=LogitsProcessorList([processor])
        )
        for row in out:
            text = tokenizer.decode(row[inputs.input_ids.shape[1] :], skip_special_tokens=True)
            assert re.fullmatch(pattern, text), text
    with pytest.raises(ConfigError, match="max_new_tokens=4"):
        model.generate(**inputs, **how, max_new_tokens=9, logits_processor=LogitsProcessorList([processor]))


def test_rows_that_have_ended_may_be_padded_with_anything() -> None:
    """transformers writes padding after EOS, and asks for scores of such a row while others go on."""
    of = target(full("1(000)?"), num_tokens=5)
    together, alone = TwistProcessor(of), TwistProcessor(of)
    rows = torch.cat([of.prompt_tokens.expand(2, -1), torch.tensor([[1, EOS, 0, 0], [1, 0, 0, 0]])], 1)
    begun = len(of.prompt_tokens)
    for end in range(begun, rows.shape[1] + 1):
        scores = together(rows[:, :end], torch.zeros(2, of.lm.vocab_size))
        assert torch.equal(scores[1:], alone(rows[1:, :end], torch.zeros(1, of.lm.vocab_size)))
        assert bool(scores[0, 1 if end == begun else EOS].isfinite())


@pytest.mark.parametrize("first", [2, 4])
def test_each_generate_begins_anew(first: int) -> None:
    """Be it on what the last one returned, whether that was whole or not."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(FOLDER).eval(), AutoTokenizer.from_pretrained(FOLDER)
    pattern = " [a-z]+ (girl|boy|dog)"
    processor = TwistProcessor(Target("stories", Regex(pattern, mode="fullmatch", constrain=True), PROMPTS[0], 4))
    how = {"do_sample": True, "top_k": 0, "pad_token_id": tokenizer.eos_token_id, "logits_processor": [processor]}
    torch.manual_seed(0)
    begun = model.generate(**tokenizer(PROMPTS[:1], return_tensors="pt"), **how, max_new_tokens=first)
    out = model.generate(begun, attention_mask=torch.ones_like(begun), **how, max_new_tokens=4)
    text = tokenizer.decode(out[0, begun.shape[1] :], skip_special_tokens=True)
    assert re.fullmatch(pattern, text), text


def test_a_prompt_keeps_the_bos_that_it_is_padded_with() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    bos = tokenizer.eos_token_id
    of = Target("stories", Classifier("sentiment", "positive"), tokenizer.eos_token + PROMPTS[0], 4)
    run = twistlm.train(of, twist="backbone", num_updates=1, num_draws=16, num_particles=8, seed=0)
    assert of.prompt_tokens[0] == bos
    assert run.model.twist is not None
    assert run.model.twist.decoder is not None
    with torch.no_grad():
        for parameter in run.model.twist.head.parameters():
            parameter.normal_()
    rows = torch.nn.functional.pad(of.prompt_tokens, (3, 0), value=bos), torch.cat([of.prompt_tokens, torch.arange(3)])
    scores: Any = TwistProcessor(run, pad_token_id=bos)(torch.stack(rows), torch.zeros(2, of.lm.vocab_size))
    with torch.no_grad():
        expected = run.model.twist.head(run.model.twist.decoder.start([of.prompt_tokens, rows[1]]).features)
    torch.testing.assert_close(scores, expected.float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("twist", "taken"), [("backbone", True), ("mlp", False)])
def test_twists_that_bring_what_they_read(twist: str, taken: bool) -> None:
    of = Target("stories", Classifier("sentiment", "positive"), PROMPTS[0], 4)
    run = twistlm.train(of, twist=twist, num_updates=1, num_draws=16, num_particles=8, seed=0)
    if not taken:
        with pytest.raises(ConfigError, match="reads the base model's hidden states"):
            TwistProcessor(run)
        return
    prompt = of.prompt_tokens.unsqueeze(0)
    scores: Any = TwistProcessor(run)(prompt, torch.zeros(1, of.lm.vocab_size))
    assert run.model.twist is not None
    assert run.model.twist.decoder is not None
    expected = run.model.twist.head(run.model.twist.decoder.start([of.prompt_tokens]).features)
    torch.testing.assert_close(scores, expected.float(), rtol=0, atol=1e-5)


def test_nothing_to_add() -> None:
    with pytest.raises(ConfigError, match="no constraint"):
        TwistProcessor(Target("stories", Classifier("sentiment", "positive"), PROMPTS[0], 4))
