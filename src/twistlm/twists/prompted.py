"""A twist whose own network is told the condition first: it reads prompt, condition and prompt again, then the text.

What must follow is then in the network's context at every token, where attention can look up who and what it speaks of;
the base model, trained on text, can do a part of that before any twist has learned anything (docs/conditions.md). One
that reads a hidden state beside the prefix's (twist 'conditional', Zhao et al. 2024) has to learn it from nothing.
"""

from dataclasses import replace

import torch
from torch import Tensor

from twistlm.core.registry import register
from twistlm.models.base import BaseLM
from twistlm.twists.backbone import fine_tuned
from twistlm.twists.base import Twist
from twistlm.twists.head import head_of_its_own
from twistlm.twists.lora import adapted


@register("twist", "prompted", needs_conditions=True)
def prompted(
    lm: BaseLM, rank: int | None = None, num_layers: int = 1, width: int | None = None, tied: bool = True
) -> Twist:
    """A transformer of its own that reads the condition before the text, for targets that differ by a condition.

    Args:
        lm: the base model.
        rank: adapters of that rank on the base model's frozen weights, instead of a copy of them all that trains: less
            memory; learns more slowly.
        num_layers: linear layers of the head.
        width: of the head's hidden layers; the model's by default.
        tied: those layers come before the model's own unembedding, which is borrowed: few parameters, and similar
            tokens share their twist.

    Raises:
        ConfigError: a number < 1, or the model has no transformer to copy or no output layer to borrow.
    """
    head = head_of_its_own(lm, "prompted", num_layers, width, is_tied=tied)
    if rank is None:
        twist = fine_tuned(lm, head, "prompted", "use 'conditional' for this model")
    else:
        twist = adapted(lm, head, "prompted", rank)
    return replace(twist, opening=told)


def told(prompt: Tensor, condition: Tensor) -> Tensor:
    """What is read in the place of a prompt [P]: prompt, condition and prompt again [2P + c].

    Without the first of them a text would begin in the middle of a sentence.
    """
    return torch.cat([prompt, condition.to(prompt), prompt])
