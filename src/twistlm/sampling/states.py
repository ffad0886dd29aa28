"""What has been read of the prefixes among a set of particles: by the base model, and by each twist."""

from dataclasses import dataclass

import torch
from torch import Tensor

from twistlm.models.base import DecoderState


@dataclass(frozen=True)
class TwistState:
    """What a twist has read of U prefixes: with its own network if it has one, and of conditions [U, d'] if it does."""

    own: DecoderState | None = None
    given: Tensor | None = None

    def features(self, lm: DecoderState) -> Tensor:
        """What its head reads [U, …]."""
        features = lm.features if self.own is None else self.own.features
        return features if self.given is None else beside(features, self.given)

    def at(self, rows: slice) -> "TwistState":
        """Some of the prefixes, for one pass over the vocabulary: no network goes on from there."""
        return TwistState(
            None if self.own is None else DecoderState(self.own.features[rows]),
            None if self.given is None else self.given[rows],
        )


@dataclass(frozen=True)
class State:
    """Distinct prefixes read by the base model and by each twist; `rows` [B] maps particles to them."""

    lm: DecoderState
    twists: tuple[TwistState, ...]
    rows: Tensor


def beside(features: Tensor, given: Tensor) -> Tensor:
    """Features [B, …, d] of prefixes and [B, d'] of their conditions, joined: [B, …, d + d']."""
    given = given.view(given.shape[0], *[1] * (features.dim() - 2), given.shape[1])
    return torch.cat([features, given.to(features.dtype).expand(*features.shape[:-1], -1)], -1)
