"""Twists with a transformer of their own, started from a copy of the base model's (the paper's toxicity twist)."""

from typing import Any

from torch import nn

from twistlm.errors import ConfigError
from twistlm.registry import register
from twistlm.twists.head import VocabularyHead, head_of_its_own
from twistlm.types import BaseLM, Decoder, Twist


class Backbone(nn.Module):
    """Everything trainable of a separate twist: its network and its head."""

    def __init__(self, network: nn.Module, head: VocabularyHead) -> None:
        super().__init__()
        self.network, self.head = network, head


@register("twist", "backbone")
def backbone(lm: BaseLM, num_layers: int = 1, width: int | None = None) -> Twist:
    """A separate transformer, fully fine-tuned, with a linear (`num_layers=1`) or MLP head."""
    head = head_of_its_own(lm, "backbone", num_layers, width)
    copier: Any = getattr(lm, "trainable_copy", None)
    if copier is None:
        raise ConfigError("twist 'backbone' needs a transformer to copy; use it with a transformers model")
    decoder: Decoder = copier()
    network: nn.Module = decoder.module  # type: ignore[attr-defined]
    return Twist(head, Backbone(network, head), decoder)
