"""How transformers' modules reach a cache that attends by itself (`twistlm.models.cache.PrefixLayer`)."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "twistlm_decode"
TORCH = "sdpa"
_current: ContextVar[Cache | None] = ContextVar("cache that attends", default=None)
# How many threads let each network (by its configuration) attend by a cache at the moment.
_attending: Counter[int] = Counter()
_counting = Lock()
# What an architecture may ask of torch's kernel beyond a scaled product.
EXTRAS = ("position_bias", "s_aux", "softcap")


def decode_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention interface: query [B, H, Q, d]; key and value are those of the Q new tokens."""
    cache = _current.get()
    if cache is None:
        # Another thread's pass attends by a cache, and this one does not.
        return _by_torch(module, query, key, value, attention_mask, **options)
    layer = cache.layers[module.layer_idx]
    rows, _, queries, width = query.shape
    plain = attention_mask is None and all(options.get(extra) is None for extra in EXTRAS)
    if layer.get_seq_length() > queries:
        if queries == 1 and plain:
            scaling: float | None = options.get("scaling")
            return layer.attend(query, width**-0.5 if scaling is None else scaling), None
        key, value = layer.whole(rows, query.dtype)
    return _by_torch(module, query, key, value, attention_mask, **options)


def _by_torch(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
    result: tuple[Tensor, Tensor | None] = sdpa_attention_forward(*arguments, **options)
    return result


AttentionInterface.register(NAME, decode_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def can_attend(network: Any) -> bool:
    """Whether `network` attends by torch's kernel, which `attending` can stand in for."""
    return getattr(network.config, "_attn_implementation", None) in (TORCH, NAME)


def by_column(network: Any) -> bool:
    """Whether `network` may attend by the number of a column, as a window does: columns then have to be positions."""
    config = network.config
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    kinds = getattr(config, "layer_types", None) or ()
    return any(each is not None for each in windows) or any(kind != "full_attention" for kind in kinds)


@contextmanager
def attending(network: Any, cache: Cache) -> Iterator[None]:
    """Let `network` attend by `cache` for a moment, on this thread."""
    token, config = _current.set(cache), network.config
    with _counting:
        _attending[id(config)] += 1
        config._attn_implementation = NAME
    try:
        yield
    finally:
        with _counting:
            _attending[id(config)] -= 1
            if not _attending[id(config)]:
                del _attending[id(config)]
                config._attn_implementation = TORCH
        _current.reset(token)
