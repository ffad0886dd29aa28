"""The same network, arranged to be run and not trained: packed matrices, and fused forms of what is written out.

transformers' modules are kept as they are; a copy of their structure shares every parameter but the matrices of the
linear layers, which it holds packed (`twistlm.core.kernels.linear`).
"""

import copy
import itertools
from typing import Any

import torch
from torch import Tensor, nn
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
        weight, bias = self.product.weight, self.product.bias
        # Nothing is initialised there: that would take random numbers from torch's global generator.
        with torch.device("meta"):
            made: nn.Module = (
                Conv1D(*weight.shape)
                if self.transposed
                else nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
            )
        made.weight = nn.Parameter(weight.T.contiguous() if self.transposed else weight)
        if bias is not None:
            made.bias = nn.Parameter(bias.clone())
        return made


def sharing_copy(network: nn.Module) -> nn.Module:
    """Another network of the same structure on the very same tensors; matrices that are packed here are copied."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in itertools.chain(network.parameters(), network.buffers())}
    return copy.deepcopy(network, memo)


def for_inference(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """`network` in `dtype`, for passes without gradient; itself where there is nothing to gain.

    The result follows later changes of the parameters only in part: make it anew when they change. Deep copies of it
    have ordinary linear layers again.
    """
    parameters = list(network.parameters())
    same = all(p.dtype == dtype for p in parameters if p.is_floating_point())
    if same and not all(packable(p) for p in parameters):
        return network
    memo: dict[int, Any] = {}
    for tensor in itertools.chain(parameters, network.buffers()):
        memo[id(tensor)] = tensor.detach().to(dtype) if tensor.is_floating_point() and not same else tensor.detach()
        if isinstance(tensor, nn.Parameter):
            memo[id(tensor)] = nn.Parameter(memo[id(tensor)], requires_grad=False)
    made = copy.deepcopy(network, memo)
    for name, module in list(made.named_modules()):
        replacement = _replacement(module)
        if replacement is not None:
            parent, _, child = name.rpartition(".")
            setattr(made.get_submodule(parent), child, replacement)
    return made.eval()


def _replacement(module: Any) -> nn.Module | None:
    # Subclasses may do more than their base: only the very classes are known.
    if type(module) is nn.Linear and packable(module.weight):
        return PackedLinear(module.weight, module.bias, transposed=False)
    if type(module) is Conv1D and packable(module.weight):
        return PackedLinear(module.weight.T, module.bias, transposed=True)
    if type(module) is NewGELUActivation:
        # The same function in one pass instead of eight.
        return nn.GELU(approximate="tanh")
    return None
