"""The two parts of a causal language model: its network; the output layer, with soft caps or scales behind it."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from twistlm.core.kernels.linear import PackedProduct


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


def network_of(model: Any) -> nn.Module:
    """What turns tokens into hidden states."""
    found: nn.Module = getattr(model, name) if (name := _network_name(model)) else model.base_model
    return found


def unwrapped(model: Any) -> Any:
    """The model with its class's forward pass: a trainer (accelerate) wraps it, for one in other precision."""
    plain = copy.copy(model)
    vars(plain).pop("forward", None)
    return plain


def logits_of(model: Any) -> Callable[[Tensor], Tensor]:
    """What turns hidden states [..., d] into logits [..., V]: nearly always the output layer alone."""
    output = model.get_output_embeddings()
    plain = PackedProduct(output.weight, getattr(output, "bias", None))
    return Tail(model) if _changes_logits(model, plain) else plain


def _network_name(model: Any) -> str:
    """Which of a model's modules is its network: mostly as transformers' convention says ("" if none is)."""
    prefix: str = getattr(model, "base_model_prefix", "")
    if isinstance(model._modules.get(prefix), nn.Module):
        return prefix
    networks = [name for name, child in model.named_children() if isinstance(child, PreTrainedModel)]
    return networks[0] if len(networks) == 1 else ""


class Tail(nn.Module):
    """The model's own forward pass, without the network; nothing else of the model is kept."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model = unwrapped(model)
        self._model._modules = {**model._modules, _network_name(model): _Passing()}

    def forward(self, features: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., d]."""
        flat = features.reshape(1, -1, features.shape[-1])
        logits: Tensor = self._model(inputs_embeds=flat, use_cache=False).logits
        return logits.view(*features.shape[:-1], -1)


@torch.no_grad()
def _changes_logits(model: Any, plain: PackedProduct) -> bool:
    """Whether a model makes something else of hidden states than its output layer does.

    False where it cannot be told: not every model hands its network embeddings as they are.
    """
    if not _network_name(model):
        return False
    # Large ones, where a cap is felt.
    weight = model.get_output_embeddings().weight
    features = torch.randn(4, weight.shape[1], generator=torch.Generator().manual_seed(0)).mul(8)
    features = features.to(weight.device, weight.dtype)
    expected = plain(features).float()
    try:
        found = Tail(model)(features).float()
    except (AttributeError, TypeError, ValueError, KeyError, IndexError, RuntimeError):
        return False
    size = expected.abs().max().clamp_min(1.0)
    # Rounding is far below: of one product, in half precision 1/256 of a number.
    return bool((found - expected).abs().max() > (1e-4 if features.dtype.itemsize == 4 else 1e-2) * size)
