"""log Σ_v p₀(v) ψ(v) of many prefixes, with gradient to the twist: what maximum-likelihood losses need.

Written out for autograd, [rows, V] would be held several times over in float32 and both products with it run in the
slowest form. Here the forward pass goes through the packed products that sampling uses, and keeps only each row of p₀ψ
as shares of its largest entry, with their sum. From them everything else follows::

    ∂/∂log ψ(v) log Σ p₀ψ = q(v) = share(v) / Σ shares

In half precision q(v) has an error of 2⁻⁹ of itself, and so has any product with it. A loss subtracts them from the
entry of one token, and where that token is all but certain the difference is smaller than the error: most of the
gradient would be rounding. So each row's largest entry m is left out of the products, and errors are parts of 1 − q(m).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from twistlm.core.kernels.categorical import CategoricalTable, Scratch
from twistlm.core.kernels.entries import add_entries, entries
from twistlm.core.kernels.linear import PackedProduct, multiply
from twistlm.core.logmath import widen

Logits = Callable[[slice], Tensor]
"""Unnormalised log p₀ [rows, V] of a slice of the rows, without gradient."""

# Elements of q that are kept for the backward pass: 440 MB in float32. Beyond that, rows are done in segments whose
# forward pass is repeated.
KEPT = 110_000_000


def of_head(head: Callable[[Tensor], Tensor], features: Tensor, logits: Logits, rows: int) -> Tensor:
    """log Σ_v p₀ψ [n] for any head of features [n, …], `rows` at a time, each part again in the backward pass."""

    def part(features: Tensor, at: int) -> Tensor:
        with torch.no_grad():
            log_p = torch.log_softmax(widen(logits(slice(at, at + rows))), -1)
        return torch.logsumexp(log_p + widen(head(features)), -1)

    parts = [
        checkpoint(part, features[at : at + rows], at, use_reentrant=False) for at in range(0, features.shape[0], rows)
    ]
    return torch.cat(parts)


def of_product(
    inner: Tensor, weight: Tensor, bias: Tensor | None, scale: float, product: PackedProduct, logits: Logits, rows: int
) -> Tensor:
    """log Σ_v p₀ψ [n] where log ψ = scale · (inner · weightᵀ + bias).

    Args:
        inner: [n, k], with gradient.
        weight: [V, k]; gets a gradient if it asks for one.
        bias: [V] or None; likewise.
        scale: a constant.
        product: `weight` and `bias` packed, in the precision to multiply in.
        logits: the base model's; q is kept in their precision.
        rows: how many rows to do at a time.
    """
    count, vocab_size = inner.shape[0], weight.shape[0]
    most = max(1, KEPT // vocab_size)

    def segment(inner: Tensor, at: int) -> Tensor:
        def shifted(part: slice) -> Tensor:
            return logits(slice(at + part.start, min(at + part.stop, at + inner.shape[0])))

        return _FromProduct.apply(inner, weight, bias, scale, product, shifted, rows)  # type: ignore[no-any-return,no-untyped-call]

    if count <= most:
        return segment(inner, 0)
    parts = [checkpoint(segment, inner[at : at + most], at, use_reentrant=False) for at in range(0, count, most)]
    return torch.cat(parts)


class _FromProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inner: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: float,
        product: PackedProduct,
        logits: Logits,
        rows: int,
    ) -> Tensor:
        narrow = inner.to(product.dtype)
        count, vocab_size = inner.shape[0], weight.shape[0]
        total, inverse, others = inner.new_empty(count), inner.new_empty(count), inner.new_empty(0)
        mode = torch.empty(count, dtype=torch.long, device=inner.device)
        scratch = Scratch()
        for at in range(0, count, rows):
            part = slice(at, at + rows)
            log_p, log_psi = logits(part), product(narrow[part])
            if at == 0:
                others = log_p.new_empty(count, vocab_size)
            table = CategoricalTable.from_logits(log_p, log_psi if scale == 1.0 else log_psi * scale, scratch=scratch)
            total[part] = table.log_total - table.log_total_first
            inverse[part] = 1 / table.block_sums.sum(-1)
            mode[part] = table.mode
            others[part] = table.values.flatten(1)[:, :vocab_size]
        others[torch.arange(count, device=inner.device), mode] = 0.0
        ctx.save_for_backward(inner, weight, others, mode, inverse)
        ctx.dtype, ctx.scale = product.dtype, scale
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inner, weight, others, mode, inverse = ctx.saved_tensors
        # The share of the largest entry is 1, and needs no product.
        by_row = (gradients[0] * ctx.scale * inverse).unsqueeze(-1)
        scaled, unit = by_row, None
        if others.dtype == torch.float16:
            # It has no numbers as small as these may be; a power of two changes no digit.
            unit = torch.exp2(by_row.abs().amax().clamp_min(torch.finfo(by_row.dtype).tiny).log2().floor())
            scaled = by_row / unit
        inner_grad = weight_grad = bias_grad = None
        if ctx.needs_input_grad[0]:
            inner_grad = (multiply(others, weight.to(others.dtype)).to(by_row.dtype) + entries(weight, mode)) * by_row
        if ctx.needs_input_grad[1]:
            weight_grad = (others.T @ (inner.to(ctx.dtype) * scaled).to(others.dtype)).to(weight.dtype)
            weight_grad = weight_grad if unit is None else weight_grad.mul_(unit)
            add_entries(weight_grad, mode, (inner * by_row).to(weight.dtype))
        if ctx.needs_input_grad[2]:
            bias_grad = (scaled.T.to(others.dtype) @ others).squeeze(0).to(weight.dtype)
            bias_grad = bias_grad if unit is None else bias_grad.mul_(unit)
            add_entries(bias_grad, mode, by_row.squeeze(-1).to(weight.dtype))
        return inner_grad, weight_grad, bias_grad, None, None, None, None
