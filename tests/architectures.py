"""Tiny random models of every architecture that is tested, made in memory."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoConfig, LlamaConfig, OPTConfig, Qwen2Config

from twistlm.models.huggingface import HuggingFaceLM

VOCAB = 300

CONFIGS: dict[str, Any] = {
    "gpt2": lambda: GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "gpt_neo": lambda: GPTNeoConfig(
        vocab_size=VOCAB, hidden_size=32, num_layers=2, num_heads=4, max_position_embeddings=64, window_size=6,
        attention_types=[[["global", "local"], 1]],
    ),
    "llama": lambda: LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
    ),
    "qwen2": lambda: Qwen2Config(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    ),
    "opt": lambda: OPTConfig(
        vocab_size=VOCAB, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, word_embed_proj_dim=32,
    ),
}  # fmt: skip


class Words:
    """A tokenizer double: token 7 is the text " 7"."""

    eos_token_id = 0

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}

    def batch_decode(self, sequences: list[list[int]], **options: Any) -> list[str]:
        return ["".join(f" {token}" for token in sequence if token != self.eos_token_id) for sequence in sequences]


def tiny_model(architecture: str = "gpt2", dtype: torch.dtype = torch.float32, scale: float = 4.0) -> Any:
    """A random model, always the same; its weights are enlarged so that its distributions are far from uniform."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[architecture]())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale if parameter.dim() > 1 else 1.0)
    return model.to(dtype).eval()


def tiny_lm(architecture: str = "gpt2", dtype: torch.dtype = torch.float32, scale: float = 4.0) -> HuggingFaceLM:
    """`tiny_model` as a base model."""
    return HuggingFaceLM(tiny_model(architecture, dtype, scale), Words(), architecture)
