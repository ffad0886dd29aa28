"""Twists with a transformer of their own, started from a copy of the base model's (the paper's toxicity twist)."""

from typing import Any

from torch import nn

from twistlm.core.errors import ConfigError
from twistlm.core.registry import register
from twistlm.models.base import BaseLM, Decoder
from twistlm.twists.base import Twist
from twistlm.twists.head import VocabularyHead, head_of_its_own


class Backbone(nn.Module):
    """Everything trainable of a separate twist: its network and its head."""

    def __init__(self, network: nn.Module, head: VocabularyHead) -> None:
        super().__init__()
        self.network, self.head = network, head


@register("twist", "backbone")
def backbone(lm: BaseLM, num_layers: int = 1, width: int | None = None, tied: bool = False) -> Twist:
    """A separate transformer, fully fine-tuned, with a linear (`num_layers=1`) or MLP head.

    Args:
        lm: the base model.
        num_layers: linear layers of the head.
        width: of the head's hidden layers; the model's by default.
        tied: those layers come before the model's own unembedding, which is borrowed: few parameters, and similar
            tokens share their twist.

    Raises:
        ConfigError: num_layers < 1, or the model has no transformer to copy or no output layer to borrow.
    """
    head = head_of_its_own(lm, "backbone", num_layers, width, is_tied=tied)
    return fine_tuned(lm, head, "backbone", "use it with a transformers model")


def fine_tuned(lm: BaseLM, head: VocabularyHead, twist: str, remedy: str) -> Twist:
    """A head with a copy of the base model's network that trains with it.

    Raises:
        ConfigError: the model has no transformer to copy; `remedy` says what to do.
    """
    copier: Any = getattr(lm, "trainable_copy", None)
    if copier is None:
        raise ConfigError(f"twist {twist!r} needs a transformer to copy; {remedy}")
    decoder: Decoder = copier()
    network: nn.Module = decoder.module  # type: ignore[attr-defined]
    return Twist(head, Backbone(network, head), decoder)
