"""`generate` of transformers itself, with the posterior as its way of decoding."""

import re
from queue import Queue
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer

import twistlm
from twistlm import Run, Target
from twistlm.core.errors import ConfigError, ModelError
from twistlm.integrations import PosteriorOutput, generate
from twistlm.models.bundled import folder
from twistlm.potentials import Classifier, Infilling, Regex

FOLDER = folder("stories")
SEVERAL = {"do_sample": True, "top_k": 0, "custom_generate": generate, "num_particles": 4}
PROMPTS = ["Once upon a time, there was a", "The old man"]


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    found = AutoTokenizer.from_pretrained(FOLDER, padding_side="left")
    found.pad_token = found.pad_token or found.eos_token
    return found


@pytest.fixture(scope="module")
def run() -> Run:
    target = Target("stories", Classifier("sentiment", "positive"), PROMPTS[0], 6, dtype="float32")
    return twistlm.train(target, twist="lexical", num_updates=4, num_draws=64, num_particles=16, seed=0)


@pytest.fixture(scope="module")
def girls() -> Target:
    pattern = " [a-z]+ (girl|boy)"
    return Target("stories", Regex(pattern, mode="fullmatch", constrain=True), PROMPTS[0], 4)


def test_the_same_sequences_as_the_run_draws(model: Any, tokenizer: Any, run: Run) -> None:
    inputs = tokenizer(PROMPTS[0], return_tensors="pt")
    how = {**SEVERAL, "run": run, "num_return_sequences": 3}
    out = model.generate(**inputs, **how, return_dict_in_generate=True, seed=5)
    assert isinstance(out, PosteriorOutput)
    assert out.sequences.shape[0] == 3
    assert out.sequences[:, : inputs.input_ids.shape[1]].equal(inputs.input_ids.expand(3, -1))
    for values in (out.log_weights, out.log_phi, out.log_p):
        assert values is not None
        assert values.shape == (3,)
        assert bool(values.isfinite().all())
    assert model.generate(**inputs, **how, seed=5).equal(out.sequences)
    torch.manual_seed(3)
    first = model.generate(**inputs, **how)
    torch.manual_seed(3)
    assert model.generate(**inputs, **how).equal(first)
    again = run.sampler().densities(_samples(run, out.sequences, inputs.input_ids.shape[1]))
    torch.testing.assert_close(again.log_p.sum(-1), out.log_p, rtol=0, atol=1e-3)


def _samples(run: Run, sequences: torch.Tensor, length: int) -> Any:
    from twistlm.sampling.samples import Samples

    tokens = torch.full((len(sequences), run.target.num_tokens), run.target.lm.eos_token_id)
    tokens[:, : sequences.shape[1] - length] = sequences[:, length:]
    mask, zeros = run.model.mask(tokens), torch.zeros(tokens.shape, dtype=torch.float64)
    return Samples([sequences[0, :length]] * len(tokens), tokens, mask, zeros, zeros, torch.zeros(len(tokens)))


def test_padded_prompts(model: Any, tokenizer: Any, girls: Target) -> None:
    """Each row goes on from its own prompt, whatever is in front of it, and all satisfy the constraint."""
    inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    assert int(inputs.attention_mask.min()) == 0
    out = model.generate(**inputs, **SEVERAL, run=girls, num_return_sequences=4)
    assert out.shape[0] == 8
    for row in out:
        text = tokenizer.decode(row[inputs.input_ids.shape[1] :], skip_special_tokens=True)
        assert re.fullmatch(" [a-z]+ (girl|boy)", text), text


def test_a_streamer_gets_the_text_and_its_end(model: Any, tokenizer: Any, girls: Target) -> None:
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60, skip_special_tokens=True)
    inputs = tokenizer(PROMPTS[0], return_tensors="pt")
    out = model.generate(**inputs, custom_generate=generate, run=girls, num_particles=4, streamer=streamer)
    assert isinstance(streamer.text_queue, Queue)
    text = "".join(streamer)
    assert re.fullmatch(" [a-z]+ (girl|boy)", text)
    assert text == tokenizer.decode(out[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"do_sample": True, "top_k": 5}, "TopKLogitsWarper would change the model"),
        ({"do_sample": True, "temperature": 0.5}, "would change the model"),
        ({"repetition_penalty": 1.2}, "would change the model"),
        ({"num_beams": 3}, "num_beams = 3"),
        ({"max_new_tokens": 7}, "max_new_tokens = 7, and this target's texts have 4"),
        ({"eos_token_id": 9}, "eos_token_id = 9"),
        ({"max_time": 1.0}, "MaxTimeCriteria"),
        ({"output_scores": True}, "output_scores"),
        ({"run": None}, "run is missing"),
        ({"num_particles": 0}, "num_particles must be"),
    ],
)
def test_what_it_cannot_do_is_refused(
    model: Any, tokenizer: Any, girls: Target, asked: dict[str, Any], message: str
) -> None:
    inputs = tokenizer(PROMPTS[0], return_tensors="pt")
    with pytest.raises(ConfigError, match=message):
        model.generate(**inputs, **{"custom_generate": generate, "run": girls, "num_particles": 2, **asked})


def test_two_sequences_for_one_streamer(model: Any, tokenizer: Any, girls: Target) -> None:
    inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True)

    class Ignoring:
        def put(self, value: torch.Tensor) -> None:
            pass

        def end(self) -> None:
            pass

    with pytest.raises(ConfigError, match="a streamer takes one sequence"):
        model.generate(**inputs, custom_generate=generate, run=girls, streamer=Ignoring())


def test_another_model_is_refused(tokenizer: Any, girls: Target) -> None:
    """Tuned, it would be sampled as it was before."""
    other = AutoModelForCausalLM.from_pretrained(FOLDER).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.2)
    inputs = tokenizer(PROMPTS[0], return_tensors="pt")
    with pytest.raises(ModelError, match="this model is not 'stories'"):
        other.generate(**inputs, custom_generate=generate, run=girls)


def test_a_condition_is_refused(model: Any, tokenizer: Any) -> None:
    target = Target("stories", Infilling(2), PROMPTS[0], 4)
    with pytest.raises(ConfigError, match="given a condition"):
        model.generate(**tokenizer(PROMPTS[0], return_tensors="pt"), custom_generate=generate, run=target)
