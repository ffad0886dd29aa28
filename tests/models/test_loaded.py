"""Targets on models that a user has loaded himself."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from tests.architectures import tiny_model
from twistlm import Target
from twistlm.core.errors import ModelError
from twistlm.potentials import Regex

STORIES = Path(__file__).parents[2] / "src" / "twistlm" / "models" / "bundled" / "stories"


def target(model: object) -> Target:
    return Target(model, Regex("e"), "Once upon a time", 3)


def test_a_folder_a_loaded_model_and_a_pair_are_the_same() -> None:
    expected = target("stories")
    expected_logits = expected.lm.logits(expected.lm.features([expected.prompt_tokens], torch.tensor([[5, 6, 7]])))
    loaded = AutoModelForCausalLM.from_pretrained(STORIES, dtype="auto").train()
    pair = (AutoModelForCausalLM.from_pretrained(STORIES, dtype="auto"), AutoTokenizer.from_pretrained(STORIES))
    for given in (STORIES, loaded, pair):
        made = target(given)
        assert made.prompt_tokens.equal(expected.prompt_tokens)
        logits = made.lm.logits(made.lm.features([made.prompt_tokens], torch.tensor([[5, 6, 7]])))
        assert torch.equal(logits, expected_logits)
    assert target(STORIES).fingerprint == expected.fingerprint


def test_what_is_no_language_model_is_refused() -> None:
    for given in (None, 5, AutoModel.from_pretrained(STORIES), (tiny_model(), None, None)):
        with pytest.raises(ModelError, match=r"is no causal language model; give a registered name"):
            target(given)


def test_a_model_without_a_tokenizer_asks_for_the_pair() -> None:
    with pytest.raises(ModelError, match=r"no tokenizer was found for the loaded model .*give the pair"):
        target(tiny_model())
