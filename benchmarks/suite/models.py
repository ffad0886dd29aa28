"""The models that are measured, and twists that are not the zero they start from."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from twistlm.core.registry import lookup
from twistlm.core.rng import Rng
from twistlm.models.bundled import folder
from twistlm.models.huggingface import HuggingFaceLM
from twistlm.models.packaged import packaged_model, without_progress_bars
from twistlm.twists.base import Twist

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PROMPT_LENGTH = 8
PROMPTS = {
    "smollm2": "The man in the bar shouted, and everybody",
    "stories": "Once upon a time, there was a little",
}
# Standard deviation of log ψ over the vocabulary: with it, weights vary enough for every resampling to be real.
SPREAD = 1.0


def build(name: str, dtype: str, *, quick: bool = False, vocab_size: int | None = None) -> Any:
    """A causal LM of transformers, in memory and touched once, that samples from its plain distribution.

    "gpt2" has random weights; "small" is the same with fewer of them; in a quick run every model is tiny and random.
    """
    torch.manual_seed(0)
    if name in PROMPTS and not quick:
        with without_progress_bars():
            model = AutoModelForCausalLM.from_pretrained(_place(name), dtype=TORCH_DTYPES[dtype])
    elif name in PROMPTS:
        shape = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
        model = LlamaForCausalLM(
            LlamaConfig(**shape, num_key_value_heads=2, vocab_size=300, eos_token_id=2, tie_word_embeddings=True)
        )
    else:
        shape = {"n_layer": 6, "n_embd": 768, "n_head": 12, "vocab_size": 50_257}
        if name == "small":
            shape = {"n_layer": 2, "n_embd": 256, "n_head": 4, "vocab_size": 5_000}
        if quick:
            shape = {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 300}
        if vocab_size is not None:
            shape["vocab_size"] = vocab_size
        model = GPT2LMHeadModel(GPT2Config(**shape, eos_token_id=None, bos_token_id=None))
    model = model.to(TORCH_DTYPES[dtype]).eval().requires_grad_(False)
    # No end of sequence on either side, so that both make the same tokens.
    model.config.eos_token_id = None
    model.generation_config = GenerationConfig(do_sample=True, top_k=0, use_cache=True, eos_token_id=None)
    # A favour to `generate`: its last hidden states of the prompt are a strided view, for which torch's
    # bfloat16 product copies the output layer once per sequence (8 GB and 20 s for 100).
    model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    # Weights that are mapped from a file count as memory only once they have been read.
    for parameter in model.parameters():
        parameter.sum()
    return model


def prompt_of(name: str, model: Any, *, quick: bool = False) -> Tensor:
    """Eight tokens [P]: of a text for a model that knows English, random ones for the others."""
    if name in PROMPTS and not quick:
        tokens: Tensor = AutoTokenizer.from_pretrained(_place(name))(PROMPTS[name], return_tensors="pt")["input_ids"]
        return tokens[0, :PROMPT_LENGTH]
    torch.manual_seed(1)
    return torch.randint(1, model.get_output_embeddings().weight.shape[0], (PROMPT_LENGTH,))


def _place(name: str) -> Path:
    """The folder of a model with weights."""
    return folder(name) if name == "stories" else packaged_model(name)


def spread_twist(lm: HuggingFaceLM, kind: str, prompt: Tensor) -> Twist:
    """The twist `kind` with a random log ψ of standard deviation `SPREAD` over the vocabulary."""
    rng = Rng(0).fork("twist", kind)
    with rng.initialising():
        twist: Twist = lookup("twist", kind).value(lm)
        # Every twist starts at zero by one matrix that is zero, and is linear in it.
        outputs = [p for p in twist.module.parameters() if p.requires_grad and p.dim() == 2 and not bool(p.any())]
        for parameter in outputs:
            torch.nn.init.normal_(parameter)
        tokens = torch.randint(1, lm.vocab_size, (2, 4))
    with torch.no_grad():
        features = (twist.decoder or lm).features([prompt, prompt], tokens)
        spread = float(twist.head(features).float().std(-1).mean())
        if not outputs or not spread > 0:
            raise RuntimeError(f"twist {kind!r} stayed constant: its output is no longer one zero matrix")
        for parameter in outputs:
            parameter.mul_(SPREAD / spread)
    return twist
