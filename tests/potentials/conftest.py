"""Test doubles of a base model: one that only knows characters, and a tiny real GPT-2."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from twistlm.models.base import DecoderState, Prompts
from twistlm.models.huggingface import HuggingFaceLM, load

ALPHABET = "$abcdefghijklmnopqrstuvwxyz "  # 0 is EOS and is skipped in decoding


class CharacterLM:
    """BaseLM over characters; the network is a tiny GPT-2 with random weights if one is given."""

    vocab_size = len(ALPHABET)
    eos_token_ids = (0,)
    eos_token_id = 0
    max_length: int | None = 64
    feature_size = 8

    def __init__(self, gpt2: Any = None, front: tuple[int, ...] = ()) -> None:
        self.gpt2, self.front, self.decoded, self.rows = gpt2, front, 0, []

    def encode(self, text: str) -> Tensor:
        return torch.tensor([*self.front, *(ALPHABET.index(c) for c in text)], dtype=torch.long)

    def decode(self, sequences: Sequence[Tensor]) -> list[str]:
        return ["".join(ALPHABET[i] for i in sequence.tolist() if i != 0) for sequence in sequences]

    def features(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        self.rows.append(len(tokens))
        out = []
        for prompt, row in zip(prompts, tokens, strict=True):  # one at a time: no padding to get wrong
            hidden = self.gpt2.transformer(torch.cat([prompt, row])[None]).last_hidden_state[0]
            out.append(hidden[len(prompt) - 1 : -1])
        return torch.stack(out)

    def logits(self, features: Tensor) -> Tensor:
        return self.gpt2.lm_head(features)

    def start(self, prompts: Prompts) -> DecoderState:
        raise NotImplementedError

    def advance(self, state: DecoderState, parents: Tensor, tokens: Tensor) -> DecoderState:
        raise NotImplementedError


@pytest.fixture
def lm() -> CharacterLM:
    return CharacterLM()


@pytest.fixture(scope="session")
def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(ALPHABET),
        n_embd=8,
        n_layer=1,
        n_head=2,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).eval().double()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(20)  # the default initialisation is all but uniform
    return model


@pytest.fixture
def gpt2_lm(gpt2: Any) -> CharacterLM:
    return CharacterLM(gpt2)


@pytest.fixture
def batch(lm: CharacterLM) -> tuple[list[Tensor], Tensor]:
    """Three sequences, two of them equal: 'hi dog', 'hi cat', 'hi dog'."""
    prompt = lm.encode("hi ")
    return [prompt] * 3, torch.stack([lm.encode(word) for word in ("dog", "cat", "dog")])


CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }} : {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


@pytest.fixture
def chat_lm() -> HuggingFaceLM:
    """A real model that reads chats; one for every test, since it remembers them."""
    lm = load("stories")
    lm.tokenizer.chat_template = CHAT_TEMPLATE
    return lm
