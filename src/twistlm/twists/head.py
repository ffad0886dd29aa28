"""Twists that read the base model's own hidden states: one small network, then an output layer over V::

    log ψ(prefix, v) = (trunk(h) · W_v + b_v)

with h the hidden state that also predicts the next token. The builders differ in the trunk and in whose W it is. All
start at log ψ = 0 exactly, so that training starts from q = p₀ (the paper's appendix on architectures).
"""

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from twistlm.core.errors import ConfigError
from twistlm.core.kernels import normaliser
from twistlm.core.kernels.entries import entries
from twistlm.core.kernels.linear import PackedProduct
from twistlm.core.registry import register
from twistlm.models.base import BaseLM
from twistlm.twists.base import Twist


class VocabularyHead(nn.Module):
    """log ψ over the vocabulary from features, through `trunk` and an output matrix.

    Args:
        trunk: features [..., d] to [..., k], float32.
        weight: output matrix [V, k]; a parameter of the head, or a frozen tensor that it borrows.
        packs: keep a copy of the output matrix that is faster to multiply with; one in another precision is kept
            wherever that of the features is another.
    """

    def __init__(self, trunk: nn.Module, weight: Tensor, packs: bool = True) -> None:
        super().__init__()
        self.trunk, self._packs = trunk, packs
        if isinstance(weight, nn.Parameter) and weight.requires_grad:
            self.weight: Tensor = weight
        else:
            # Borrowed (the model's unembedding): not saved with the twist, not trained, not copied.
            self.register_buffer("weight", weight.detach(), persistent=False)
        self.bias = nn.Parameter(torch.zeros(weight.shape[0]))
        self.shrinkage: Tensor
        self.register_buffer("shrinkage", torch.ones(()))
        self._product: tuple[object, PackedProduct] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: not the packed product, which is made anew."""
        return self.__dict__ | {"_product": None}

    def forward(self, features: Tensor) -> Tensor:
        """log ψ of every token [..., V].

        Without gradient the product runs and stays in the features' precision: it is as large as the model's own
        output layer, and sampling weighs by the very values it draws from, so rounding costs no exactness.
        """
        inner: Tensor = self.trunk(features.float())
        if torch.is_grad_enabled():
            return (inner @ self.weight.float().T + self.bias) * self.shrinkage
        log_psi: Tensor = self._packed(features.dtype)(inner.to(features.dtype))
        return log_psi if bool(self.shrinkage == 1.0) else log_psi * self.shrinkage

    def gather(self, features: Tensor, tokens: Tensor) -> Tensor:
        """log ψ of the chosen tokens [...], float32: k multiplications each instead of V·k."""
        inner: Tensor = self.trunk(features.float())
        log_psi: Tensor = (inner * entries(self.weight, tokens).float()).sum(-1) + entries(self.bias, tokens)
        return log_psi * self.shrinkage

    def start_at(self, log_psi: float) -> None:
        """Every bias is raised by this."""
        with torch.no_grad():
            self.bias.add_(log_psi)

    def log_normaliser(self, features: Tensor, logits: normaliser.Logits, rows: int) -> Tensor:
        """log Σ_v p₀ψ [n] of features [n, d] with gradient, multiplied in their precision; see `normaliser`."""
        inner: Tensor = self.trunk(features.float())
        # Of as many rows packing pays at once, whether it is kept or not.
        product = self._packed(features.dtype) if self._packs else self._made(features.dtype, pack=True)
        return normaliser.of_product(inner, self.weight, self.bias, float(self.shrinkage), product, logits, rows)

    def _packed(self, dtype: torch.dtype) -> PackedProduct:
        """The output layer in `dtype`, made once per version of its parameters."""
        version = (dtype, *[(tensor.data_ptr(), tensor._version) for tensor in (self.weight, self.bias)])
        kept = self._product
        if kept is None or kept[0] != version:
            # The last one goes before there is another.
            kept = self._product = None
            kept = self._product = (version, self._made(dtype, pack=self._packs or dtype != self.weight.dtype))
        return kept[1]

    def _made(self, dtype: torch.dtype, *, pack: bool) -> PackedProduct:
        return PackedProduct(self.weight.detach().to(dtype), self.bias.detach().to(dtype), pack=pack)


def _zero_output(vocab_size: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(vocab_size, width))


def _layers(sizes: list[int], *, zero_last: bool) -> nn.Sequential:
    """Linear layers with ReLU between them, as the paper's MLP twist."""
    layers: list[nn.Module] = []
    for narrow, wide in itertools.pairwise(sizes):
        layers += [nn.Linear(narrow, wide), nn.ReLU()]
    if zero_last:
        layers.pop()
        nn.init.zeros_(layers[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(layers[-1].bias)  # type: ignore[arg-type]
    return nn.Sequential(*layers)


def head_of_its_own(
    lm: BaseLM, twist: str, num_layers: int, width: int | None, *, is_tied: bool = False
) -> VocabularyHead:
    """A linear (`num_layers=1`) or MLP head for a twist with a network of its own: it has time to spare, and no memory.

    Args:
        lm: the base model.
        twist: what it is for, as it is named.
        num_layers: linear layers.
        width: of hidden layers; the model's by default.
        is_tied: the layers come before the model's own unembedding, instead of ending in an output matrix to learn.

    Raises:
        ConfigError: num_layers < 1, or the model has no output layer to borrow.
    """
    if num_layers < 1:
        raise ConfigError(f"twist {twist!r} needs num_layers of at least 1, not {num_layers}")
    if is_tied:
        return _tied_head(lm, twist, num_layers, width, packs=False).to(_device(lm))
    if num_layers == 1:
        return VocabularyHead(nn.Identity(), _zero_output(lm.vocab_size, lm.feature_size), False).to(_device(lm))
    width = width or lm.feature_size
    trunk = _layers([lm.feature_size, *[width] * (num_layers - 1)], zero_last=False)
    return VocabularyHead(trunk, _zero_output(lm.vocab_size, width), False).to(_device(lm))


def _twist(head: VocabularyHead, lm: BaseLM) -> Twist:
    head.to(_device(lm))
    return Twist(head, head)


def _device(lm: Any) -> torch.device:
    device: torch.device = getattr(lm, "device", torch.device("cpu"))
    return device


@register("twist", "linear")
def linear(lm: BaseLM) -> Twist:
    """One linear layer from the hidden state to log ψ over V."""
    return _twist(VocabularyHead(nn.Identity(), _zero_output(lm.vocab_size, lm.feature_size)), lm)


@register("twist", "mlp")
def mlp(lm: BaseLM, num_layers: int = 3, width: int | None = None) -> Twist:
    """An MLP with `num_layers` linear layers, the last of them over V; `width` defaults to the model's."""
    if num_layers < 2:
        raise ConfigError(f"twist 'mlp' needs num_layers of at least 2, not {num_layers}; use 'linear' for one")
    width = width or lm.feature_size
    trunk = _layers([lm.feature_size, *[width] * (num_layers - 1)], zero_last=False)
    return _twist(VocabularyHead(trunk, _zero_output(lm.vocab_size, width)), lm)


@register("twist", "tied")
def tied(lm: BaseLM, num_layers: int = 2, width: int | None = None) -> Twist:
    """A small network followed by the model's own unembedding: few parameters, and similar tokens share their twist."""
    if num_layers < 1:
        raise ConfigError(f"twist 'tied' needs num_layers of at least 1, not {num_layers}")
    return _twist(_tied_head(lm, "tied", num_layers, width), lm)


def _tied_head(lm: BaseLM, twist: str, num_layers: int, width: int | None, *, packs: bool = True) -> VocabularyHead:
    """`num_layers` linear layers before the model's own unembedding, the last of them zero."""
    unembedding = _unembedding(lm, twist)
    sizes = [lm.feature_size, *[width or lm.feature_size] * (num_layers - 1), lm.feature_size]
    return VocabularyHead(_layers(sizes, zero_last=True), unembedding, packs)


def _unembedding(lm: BaseLM, twist: str) -> Tensor:
    unembedding: Tensor | None = getattr(lm, "unembedding", None)
    if unembedding is None:
        raise ConfigError(f"twist {twist!r} needs a model with an output layer to borrow; use 'mlp' for this one")
    return unembedding
