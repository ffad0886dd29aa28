"""A model that is changed in place after it was handed over is neither the old one nor the new one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.architectures import Words, tiny_model
from twistlm.core.errors import ModelError
from twistlm.models.bundled import folder
from twistlm.models.huggingface import HuggingFaceLM

PROMPT, TOKENS = torch.tensor([5, 6, 7]), torch.tensor([[8, 9]])


def one_step(model: Any) -> None:
    model.requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(input_ids=PROMPT.unsqueeze(0), labels=PROMPT.unsqueeze(0)).loss.backward()
    optimizer.step()


def other_weights(model: Any) -> None:
    model.load_state_dict({name: 2 * tensor for name, tensor in model.state_dict().items()})


def merge(model: Any) -> None:
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False))
    adapted.merge_adapter()


def behind_torchs_back(model: Any) -> None:
    model.transformer.h[1].ln_1.weight.data.mul_(2)


def other_precision(model: Any) -> None:
    model.double()


@pytest.mark.parametrize("change", [one_step, other_weights, merge, behind_torchs_back, other_precision])
def test_a_changed_model_is_refused(change: Callable[[Any], None]) -> None:
    lm = HuggingFaceLM(model := tiny_model(), Words(), "mine")
    lm.start([PROMPT])
    change(model)
    for work in (
        lambda: lm.start([PROMPT]),
        lambda: lm.features([PROMPT], TOKENS),
        lm.trainable_copy,
        lm.identified_by,
    ):
        with pytest.raises(ModelError, match="'mine' was changed after it was handed over; hand it over again"):
            work()
    HuggingFaceLM(model, Words(), "mine").start([PROMPT])


def test_a_model_that_is_used_or_dropped_is_not_changed() -> None:
    model = AutoModelForCausalLM.from_pretrained(folder("stories"))
    lm = HuggingFaceLM(model, Words(), "stories")
    before = lm.features([PROMPT], TOKENS)
    model(input_ids=PROMPT.unsqueeze(0))
    model.train().eval()
    assert torch.equal(lm.features([PROMPT], TOKENS), before)
    del model
    assert torch.equal(lm.features([PROMPT], TOKENS), before)
