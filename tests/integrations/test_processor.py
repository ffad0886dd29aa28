"""A twist among the logits processors of transformers."""

import re
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList

import twistlm
from tests.constrained import full, target, truth
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
