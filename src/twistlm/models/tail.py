"""What a causal language model does after its network: the output layer, and soft caps or scales of the logits."""

import copy
from typing import Any

from torch import Tensor, nn


class _HiddenStates:
    """A network's output that has nothing but hidden states: whatever else a head looks for is None."""

    def __init__(self, last_hidden_state: Tensor) -> None:
        self.last_hidden_state = last_hidden_state

    def __getitem__(self, at: int) -> Tensor:
        return (self.last_hidden_state,)[at]

    def __getattr__(self, name: str) -> None:
        return None


class _Passing(nn.Module):
    """Stands where the network was: what is given as embeddings comes out as hidden states."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> _HiddenStates:
        return _HiddenStates(inputs_embeds)


class Tail(nn.Module):
    """The model's own forward pass, without the network; nothing else of the model is kept."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model = copy.copy(model)
        # A trainer wraps the forward pass (accelerate), which then is the whole model's.
        vars(self._model).pop("forward", None)
        self._model._modules = {**model._modules, model.base_model_prefix: _Passing()}

    def forward(self, features: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., d]."""
        flat = features.reshape(1, -1, features.shape[-1])
        logits: Tensor = self._model(inputs_embeds=flat, use_cache=False).logits
        return logits.view(*features.shape[:-1], -1)


def changes_logits(model: Any, features: Tensor, plain: Tensor) -> bool:
    """Whether a model makes something else of hidden states [N, d] than its output layer does, logits [N, V].

    False where it cannot be told: not every model has its network where transformers' convention says, and hands it
    embeddings as they are.
    """
    if not isinstance(model._modules.get(getattr(model, "base_model_prefix", "")), nn.Module):
        return False
    try:
        found = Tail(model)(features).float()
    except (AttributeError, TypeError, ValueError, KeyError, IndexError, RuntimeError):
        return False
    size = plain.abs().max().clamp_min(1.0)
    # Rounding is far below: of one product, in half precision 1/256 of a number.
    return bool((found - plain.float()).abs().max() > (1e-4 if features.dtype.itemsize == 4 else 1e-2) * size)
