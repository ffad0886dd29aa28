"""Products with a fixed matrix, laid out once for many of them.

torch multiplies float32 by a library that reaches a third of the arithmetic that an AMD core can do, and unpacks the
matrix again on every call. oneDNN with the matrix packed beforehand takes 17 ms instead of 72 for 100 × 768 by
768 × 50,257 in float32 (two Zen 5 cores; 9 instead of 11 in bfloat16), and 0.8 instead of 1.9 for a transformer's
layer. The packed copy costs as much memory as the matrix, and serves inference only: no gradient.

oneDNN compiles its code for each number of rows, which takes 2 to 5 ms in bfloat16 (20 where V is 4,096), ten times as
long as the product; and the number of different prefixes changes with every token. So some rows are multiplied twice,
up to one of few sizes: 400 draws from the bundled model take 7 % less time, and SmolLM2's no more.
"""

import os
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from twistlm.core.kernels.threads import together

# oneDNN keeps what it made for each of the last 1,024 shapes, working memory included: when the number of rows took
# every value, as sequences ended, 256 particles over V = 49,152 held 14 GB where 3 do (an Intel core with AMX). The
# cache is read at the first product, so this comes in time unless something else has multiplied before.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")

# Elements that are copied to get another number of rows: 0.1 ms. More rows than that are worth code of their own.
COPIED = 1_000_000
# Rows of a matrix that are widened to float32 at a time.
WIDENED = 1024


def packable(weight: Tensor) -> bool:
    """Whether oneDNN can pack `weight`: on the CPU, in float32, or in half precision where the processor has it."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


class PackedProduct:
    """x [..., k] ↦ x · weight [V, k]ᵀ + bias [V]: [..., V], for a weight that stays as it is.

    Where nothing can be packed, or is to be (`pack`), this is `torch.nn.functional.linear`. Neither argument is copied
    otherwise.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, pack: bool = True) -> None:
        weight = weight.detach()
        self.bias = None if bias is None else bias.detach()
        self.dtype = weight.dtype
        self._packed = pack and packable(weight)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous()) if self._packed else weight

    @property
    def weight(self) -> Tensor:
        """The weight [V, k], unpacked."""
        return self._weight.to_dense() if self._packed else self._weight

    def __call__(self, x: Tensor) -> Tensor:
        """The product; x in the weight's precision."""
        if not self._packed:
            return functional.linear(x, self._weight, self.bias)
        rows = x.reshape(-1, x.shape[-1])
        count, size = len(rows), compiled_rows(len(rows))
        if count < size and rows.numel() <= COPIED:
            rows = torch.cat((rows, rows[: size - count]))
        with together():
            product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self.bias, "none", [], "")
        return product[:count].view(*x.shape[:-1], product.shape[-1])


def compiled_rows(count: int) -> int:
    """`count` rows or up to a sixteenth more: one of sixteen sizes between a power of two and the next."""
    step = 1 << max(0, count.bit_length() - 5)
    return -(-count // step) * step


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """a [n, V] · b [V, k], both without gradient: packing b first pays in float32 (2,000 rows: 0.4 s against 0.8)."""
    return PackedProduct(b.T)(a) if b.dtype == torch.float32 else a @ b


def skinny(matrix: Tensor, x: Tensor) -> Tensor:
    """matrix [V, d] · x [d, k] for a small k, float32 [V, k], in the matrix's precision; gradient to x alone.

    The gradient is in float32: its V terms nearly cancel (a softmax's sum to zero), often with those of another
    product, and half precision would leave its own rounding.
    """
    product: Tensor = _Skinny.apply(matrix, x)  # type: ignore[no-untyped-call]
    return product


class _Skinny(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(matrix)
        return (matrix @ x.to(matrix.dtype)).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        (matrix,), (gradient,) = ctx.saved_tensors, gradients
        total = gradient.new_zeros(gradient.shape[-1], matrix.shape[-1])
        # Blocks that stay in the cache while they are widened: no slower than one product in half precision.
        for rows, block in zip(matrix.split(WIDENED), gradient.split(WIDENED), strict=True):
            total.addmm_(block.T, rows.to(gradient.dtype))
        return None, total.T
