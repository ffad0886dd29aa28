"""The same network, arranged to be run and not trained: packed matrices, and fused forms of what is written out.

transformers' modules are kept as they are; a copy of their structure shares every parameter but the matrices of the
linear layers, which it holds packed (`twistlm.core.kernels.linear`).
"""

import copy
import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from twistlm.core.kernels.linear import PackedProduct, packable


class PackedLinear(nn.Module):
    """A linear layer that only runs forward; `transposed` says that it was a `Conv1D`, whose weight is [k, n]."""

    def __init__(self, weight: Tensor, bias: Tensor | None, transposed: bool) -> None:
        super().__init__()
        self.product, self.transposed = PackedProduct(weight, bias), transposed

    def forward(self, x: Tensor) -> Tensor:
        """x [..., k] to [..., n]."""
        return self.product(x)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        """The layer that this was made from, with a weight of its own: packed ones cannot be copied, nor trained."""
        return self.ordinary(self.product.dtype)

    def ordinary(self, dtype: torch.dtype) -> nn.Module:
        """The layer that this was made from, with a weight of its own in `dtype`."""
        weight, bias = self.product.weight.to(dtype), self.product.bias
        # Nothing is initialised there: that would take random numbers from torch's global generator.
        with torch.device("meta"):
            made: nn.Module = (
                Conv1D(*weight.shape)
                if self.transposed
                else nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
            )
        made.weight = nn.Parameter(weight.T.contiguous() if self.transposed else weight)
        if bias is not None:
            made.bias = nn.Parameter(bias.to(dtype, copy=True))
        return made


def in_float32(network: nn.Module) -> nn.Module:
    """A copy of its own, with ordinary layers; made tensor by tensor, so that it is never held in two precisions."""
    memo: dict[int, Any] = {id(m): m.ordinary(torch.float32) for m in network.modules() if isinstance(m, PackedLinear)}
    for tensor in itertools.chain(network.parameters(), network.buffers()):
        own = tensor.detach().to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
        memo[id(tensor)] = nn.Parameter(own) if isinstance(tensor, nn.Parameter) else own
    return copy.deepcopy(network, memo)


def sharing_copy(network: nn.Module) -> nn.Module:
    """Another network of the same structure on the very same tensors; matrices that are packed here are copied."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in itertools.chain(network.parameters(), network.buffers())}
    return copy.deepcopy(network, memo)


class NarrowEmbedding(nn.Module):
    """Rows of `table` [V, d] in `dtype`: the numbers of a converted copy of it, without the copy."""

    def __init__(self, table: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        # No parameter: the first of a network's tells its precision.
        self._table, self._dtype = (table.detach(),), dtype

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [...] to [..., d]."""
        return functional.embedding(tokens, self._table[0]).to(self._dtype)


def for_inference(network: nn.Module, dtype: torch.dtype, *, stays: bool = False) -> nn.Module:
    """`network` in `dtype`, for passes without gradient; itself where there is nothing to gain.

    The result follows later changes of the parameters only in part: make it anew when they change. Deep copies of it
    have ordinary linear layers again, unless `network` stays.

    Args:
        network: of transformers.
        dtype: the precision to run in.
        stays: `network` is kept beside the result, for training. Then nothing is held twice that need not be: in its
            own precision its matrices are used as they are, which is slower, and otherwise embeddings stay its own.
    """
    parameters = list(network.parameters())
    same = all(p.dtype == dtype for p in parameters if p.is_floating_point())
    if same and not all(packable(p) for p in parameters):
        return network
    memo: dict[int, Any] = {}
    # Layer by layer from the original: all matrices in the other precision at once would be packed beside themselves.
    for module in network.modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        replacement = _replacement(module, dtype, pack=not (stays and same), narrow=stays and not same)
        if replacement is not None:
            memo[id(module)] = replacement.eval()
            own = []
        for tensor in own:
            if id(tensor) not in memo:
                # Buffers of a network that stays in its precision may be in another: angles of positions.
                made = tensor.detach().to(dtype) if tensor.is_floating_point() and not same else tensor.detach()
                memo[id(tensor)] = nn.Parameter(made, False) if isinstance(tensor, nn.Parameter) else made
    return copy.deepcopy(network, memo).eval()


def _replacement(module: Any, dtype: torch.dtype, *, pack: bool, narrow: bool) -> nn.Module | None:
    # Subclasses may do more than their base: only the very classes are known.
    if narrow and type(module) is nn.Embedding and module.max_norm is None:
        return NarrowEmbedding(module.weight, dtype)
    if type(module) in (nn.Linear, Conv1D) and pack:
        weight = module.weight.detach().to(dtype)
        bias = None if module.bias is None else module.bias.detach().to(dtype)
        transposed = type(module) is Conv1D
        return PackedLinear(weight.T if transposed else weight, bias, transposed) if packable(weight) else None
    if type(module) is NewGELUActivation:
        # The same function in one pass instead of eight.
        return nn.GELU(approximate="tanh")
    return None
