"""Twists with a transformer of their own at the price of adapters: its weights are the base model's and stay frozen::

    y = W x + (alpha / rank) · B A x

in every linear layer, with A [rank, in] random and B [out, rank] zero at the start (LoRA: Hu et al., 2021). `peft` puts
the adapters in their places, whatever the architecture. At rank 8 GPT-2's 124 million parameters get 1.2 million to
train, and only these and the head's are saved. (A linear head has V · d, 39 million; num_layers=2 and a small width
make that V · width.)

Training runs the adapters beside the base model's own tensors, with one exception: matrices that the base model keeps
packed (on the CPU) cannot carry gradient, so those of the linear layers are held once more, in its precision. Passes
without gradient run W + (alpha / rank) · B A, merged anew after every update: as fast as the base model, for another
copy of the linear layers' matrices in its precision (two, while merging). For SmolLM2 in bfloat16 on one core merging
takes 0.6 s, and training holds 1.6 GB where `backbone` holds 2.9.
"""

from typing import Any

from torch import nn

from twistlm.core.errors import ConfigError
from twistlm.core.registry import register
from twistlm.models.base import BaseLM, Decoder
from twistlm.twists.base import Twist
from twistlm.twists.head import VocabularyHead, head_of_its_own


class Adapted(nn.Module):
    """Everything trainable of an adapted twist, and nothing of the network that it adapts.

    Args:
        adapters: A [rank, in] and B [out, rank] of every layer by name, float32; they stay part of the network too.
        head: log ψ from the adapted network's features.
    """

    def __init__(self, adapters: dict[str, nn.Parameter], head: VocabularyHead) -> None:
        super().__init__()
        self.adapters, self.head = nn.ParameterDict(adapters), head


@register("twist", "lora")
def lora(
    lm: BaseLM,
    rank: int = 8,
    alpha: float | None = None,
    num_layers: int = 1,
    width: int | None = None,
    tied: bool = False,
) -> Twist:
    """A transformer that shares the base model's weights, with LoRA adapters and a linear or MLP head to train.

    Args:
        lm: the base model.
        rank: of each layer's change.
        alpha: the change is multiplied by alpha / rank; 2 · rank by default.
        num_layers: linear layers of the head.
        width: of the head's hidden layers; the model's by default.
        tied: those layers come before the model's own unembedding, which is borrowed: few parameters, and similar
            tokens share their twist, so that it learns from hundreds of draws.

    Raises:
        ConfigError: rank or num_layers < 1, alpha ≤ 0, or the model has no transformer to adapt or no output layer to
            borrow.
    """
    return adapted(lm, head_of_its_own(lm, "lora", num_layers, width, is_tied=tied), "lora", rank, alpha)


def adapted(lm: BaseLM, head: VocabularyHead, twist: str, rank: int, alpha: float | None = None) -> Twist:
    """A head on the base model's frozen network with adapters that train.

    Raises:
        ConfigError: rank < 1, alpha ≤ 0, or the model has no transformer to adapt.
    """
    if rank < 1:
        raise ConfigError(f"twist {twist!r} needs rank of at least 1, not {rank}")
    alpha = 2.0 * rank if alpha is None else alpha
    if not alpha > 0:
        raise ConfigError(f"twist {twist!r} needs a positive alpha, not {alpha}")
    copier: Any = getattr(lm, "adapted_copy", None)
    if copier is None:
        raise ConfigError(f"twist {twist!r} needs a transformer to adapt; use it with a transformers model")
    decoder: Decoder = copier(lambda network: _adapt(network, rank, alpha), _merge)
    network: nn.Module = decoder.module  # type: ignore[attr-defined]
    # A module's attributes have no dots in their names.
    adapters = {name.replace(".", "/"): p for name, p in network.named_parameters() if p.requires_grad}
    return Twist(head, Adapted(adapters, head), decoder)


def _adapt(network: nn.Module, rank: int, alpha: float) -> None:
    """Put an adapter beside every linear layer and freeze all else."""
    # peft takes two seconds to import, and this module is imported to list the twists.
    from peft import LoraConfig, inject_adapter_in_model

    # GPT-2's linear layers keep their matrices the other way round.
    transposed = any(type(layer).__name__ == "Conv1D" for layer in network.modules())
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # declared int, but only ever divided by the rank
        target_modules="all-linear",
        fan_in_fan_out=transposed,
    )
    inject_adapter_in_model(config, network)
    for parameter in network.parameters():
        if parameter.requires_grad:
            # Updates are smaller than half precision can add.
            parameter.data = parameter.data.float()


def _merge(network: Any) -> None:
    """Replace every adapted layer by a plain one with its own merged matrix, in the precision of the frozen one."""
    from peft.tuners.lora import Linear

    for name, layer in list(network.named_modules()):
        if isinstance(layer, Linear):
            plain: Any = layer.get_base_layer()
            (adapter,) = layer.active_adapters
            merged = (plain.weight + layer.get_delta_weight(adapter)).to(plain.weight.dtype)
            plain.weight = nn.Parameter(merged.detach(), requires_grad=False)
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, plain)
