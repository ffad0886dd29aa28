"""transformers' `generate` as every script here asks for it: N draws that nothing cuts off, up to EOS or T tokens."""

from typing import Any

from torch import Tensor


def draws(model: Any, prompt: Tensor, num_samples: int, num_tokens: int, eos: int, **how: Any) -> Tensor:
    """New tokens [N, ≤ T] after a prompt [1, P]; `how`: further arguments of `generate`."""
    made: Tensor = model.generate(
        prompt,
        attention_mask=prompt.new_ones(prompt.shape),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=num_tokens,
        num_return_sequences=num_samples,
        eos_token_id=eos,
        pad_token_id=eos,
        **how,
    )
    return made[:, prompt.shape[1] :]
