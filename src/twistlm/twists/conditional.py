"""Twists for targets that differ by a condition: what must follow is read as a second prompt.

The last hidden state of the condition's tokens is joined to the prefix's at every position (Zhao et al. 2024, appendix
on infilling), and an MLP turns both into log ψ over V.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from twistlm.core.errors import ConfigError
from twistlm.core.registry import register
from twistlm.models.base import BaseLM, Decoder
from twistlm.twists.backbone import fine_tuned
from twistlm.twists.base import Twist
from twistlm.twists.head import VocabularyHead, _layers, _twist, _unembedding, _zero_output


@register("twist", "conditional", needs_conditions=True)
def conditional(
    lm: BaseLM, num_layers: int = 2, width: int | None = None, own_network: bool = False, tied: bool = False
) -> Twist:
    """An MLP over the hidden states of prefix and condition, by the frozen base model or by a network of its own.

    Args:
        lm: the base model.
        num_layers: linear layers, the last of them over V.
        width: of the hidden ones; the model's by default.
        own_network: read both with a copy of the base model that is fine-tuned (the paper's twist), instead of with
            the base model itself.
        tied: the model's own unembedding as the last layer over V, frozen, so that what is learned of one token holds
            for similar ones: for few samples.

    Raises:
        ConfigError: num_layers < 2, or a network of its own or its output layer of a model that does not have them.
    """
    if num_layers < 2:
        raise ConfigError(f"twist 'conditional' needs num_layers of at least 2, not {num_layers}")
    width = width or lm.feature_size
    hidden = [2 * lm.feature_size, *[width] * (num_layers - 1)]
    if tied:
        head = VocabularyHead(_layers([*hidden, lm.feature_size], zero_last=True), _unembedding(lm, "conditional"))
    else:
        head = VocabularyHead(_layers(hidden, zero_last=False), _zero_output(lm.vocab_size, width))
    plain = _twist(head, lm)
    if not own_network:
        return replace(plain, reader=torch.no_grad()(last_state_of(lm)))
    made = fine_tuned(lm, head, "conditional", "leave own_network out")
    assert made.decoder is not None
    return replace(made, reader=last_state_of(made.decoder))


def last_state_of(decoder: Decoder) -> Callable[[Tensor], Tensor]:
    """A reader of conditions [n, c]: the decoder's hidden state [n, d] after all of their tokens."""

    def read(conditions: Tensor) -> Tensor:
        # Features come before each token, so one more token stands behind the last.
        return decoder.features(list(conditions[:, :1]), pad(conditions[:, 1:], (0, 1)))[:, -1]

    return read
