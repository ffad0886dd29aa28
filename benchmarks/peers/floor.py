"""Operations that N sequences of T tokens need at least, from a Llama's config: what a measured rate turns into a time.

The prompt is read once, the last token of a sequence never, and two sequences share nothing else. A product of [n, k]
and [k, m] is 2·n·k·m operations; attention is two products with every position before.
"""

from typing import Any


def operations(config: dict[str, Any], prompt: int, particles: int, tokens: int) -> float:
    """Floating-point operations of all products."""
    d: int = config["hidden_size"]
    width: int = config["num_attention_heads"] * config["head_dim"]
    kept: int = config["num_key_value_heads"] * config["head_dim"]
    inner: int = config["intermediate_size"]
    layer = d * (width + 2 * kept) + width * d + 3 * d * inner
    read = prompt + particles * (tokens - 1)
    distributions = 1 + particles * (tokens - 1)
    # A token attends to all before it and to itself.
    pairs = prompt * (prompt + 1) / 2 + particles * sum(range(prompt + 1, prompt + tokens))
    layers: int = config["num_hidden_layers"]
    outputs: int = d * config["vocab_size"]
    return 2.0 * (layers * (layer * read + 2 * width * pairs) + outputs * distributions)
