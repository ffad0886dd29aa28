"""Twists with a transformer of their own, started from a copy of the base model's (the paper's toxicity twist)."""

from typing import Any

from torch import nn

from twistlm.errors import ConfigError
from twistlm.registry import register
from twistlm.twists.head import VocabularyHead, _layers, _zero_output
from twistlm.types import BaseLM, Decoder, Twist


class Backbone(nn.Module):
    """Everything trainable of a separate twist: its network and its head."""

    def __init__(self, network: nn.Module, head: VocabularyHead) -> None:
        super().__init__()
        self.network, self.head = network, head


@register("twist", "backbone")
def backbone(lm: BaseLM, num_layers: int = 1, width: int | None = None) -> Twist:
    """A separate transformer, fully fine-tuned, with a linear (`num_layers=1`) or MLP head."""
    if num_layers < 1:
        raise ConfigError(f"twist 'backbone' needs num_layers of at least 1, not {num_layers}")
    copier: Any = getattr(lm, "trainable_copy", None)
    if copier is None:
        raise ConfigError("twist 'backbone' needs a transformer to copy; use it with a transformers model")
    decoder: Decoder = copier()
    network: nn.Module = decoder.module  # type: ignore[attr-defined]
    hidden = width or lm.feature_size
    trunk: nn.Module = nn.Identity()
    if num_layers > 1:
        trunk = _layers([lm.feature_size, *[hidden] * (num_layers - 1)], zero_last=False)
    head = VocabularyHead(trunk, _zero_output(lm.vocab_size, hidden if num_layers > 1 else lm.feature_size))
    module = Backbone(network, head).to(next(network.parameters()).device)
    return Twist(head, module, decoder)
