"""Attention of one new token over a cache, in half precision on the CPU.

torch's fused kernel is made for long queries. For a single one it takes 15 ms per layer at 100 sequences × 12 heads ×
200 columns in bfloat16, of which reading the cache is 3; products and sums written out take 7. At 200 tokens
attention is most of what a step costs more than at 20.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "twistlm_decode"
HALF = (torch.bfloat16, torch.float16)


def decode_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention interface: query [B, H, Q, d], key and value [B, H', L, d], H a multiple of H'.

    Anything but one unmasked query is left to torch's kernel. Scores and their softmax are float32.
    """
    if query.shape[2] != 1 or attention_mask is not None:
        result: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return result
    batch, heads, _, width = query.shape
    scaling = options.get("scaling") or width**-0.5
    grouped = query.view(batch, key.shape[1], heads // key.shape[1], 1, width)
    scores = (key.unsqueeze(2) * grouped).sum(-1, dtype=torch.float32) * scaling
    weights = scores.softmax(-1).to(value.dtype)
    mixed = (value.unsqueeze(2) * weights.unsqueeze(-1)).sum(-2)
    return mixed.view(batch, 1, heads, width), None


AttentionInterface.register(NAME, decode_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def decoding(network: Any, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Let `network` attend by `decode_attention` for a moment, where that pays and it uses torch's kernel now."""
    config = network.config
    if dtype not in HALF or device.type != "cpu" or getattr(config, "_attn_implementation", None) != "sdpa":
        yield
        return
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"
