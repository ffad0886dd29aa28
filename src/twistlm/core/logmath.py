"""Arithmetic in the log domain that survives −inf.

Everything is in natural logarithms (nats). Inputs are cast to float64: per-particle quantities are sums over
many tokens, and float32 loses the digits that a difference of two bounds is made of.
"""

import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

# The largest x whose exp is a number of float64.
MOST = math.log(sys.float_info.max)


def widen(x: Tensor) -> Tensor:
    """`x` in float32 at least: half precision is for products, never for logarithms and their sums."""
    return x if x.dtype == torch.float64 else x.float()


def log_mean_exp(x: Tensor, dim: int = -1) -> Tensor:
    """log (1/n Σ exp x) along `dim`, in float64. All −inf gives −inf, never NaN."""
    return torch.logsumexp(x.double(), dim) - math.log(x.shape[dim])


def exp(x: float) -> float:
    """exp x, ∞ where that is beyond float64."""
    return math.exp(x) if x <= MOST else math.inf


def normalise(log_w: Tensor, dim: int = -1) -> Tensor:
    """Normalised weights W = exp(log_w) / Σ exp(log_w) along `dim`, in float64.

    A slice that is all −inf gives zeros, so a caller that must not go on checks `log_mean_exp` first.
    """
    log_w = log_w.double()
    top = log_w.amax(dim, keepdim=True)
    w = (log_w - torch.where(top.isfinite(), top, 0.0)).exp()
    return w / w.sum(dim, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)


def ess(log_w: Tensor, dim: int = -1) -> Tensor:
    """Effective sample size 1 / Σ W² along `dim`, between 1 and n (Kong, 1992); 0 where every weight is zero."""
    total = normalise(log_w, dim).square().sum(dim)
    return torch.where(total > 0, 1.0 / total.clamp_min(torch.finfo(torch.float64).tiny), 0.0)


def effective(log_w: Tensor, groups: Sequence[Tensor]) -> float:
    """Effective sample sizes of the groups of `log_w` [n] together, each by the indices of its draws."""
    return float(sum(ess(log_w[index]) for index in groups))


def truncated(log_w: Tensor, parts: float) -> Tensor:
    """Log weights [..., n] of which none is more than one in `parts` of their sum, or in √n of fewer; in float64.

    The m largest are lowered to a common c, which is that part of m c and what the others sum to: truncated importance
    sampling (Ionides, 2008), with a bound that many weights do not reach. n counts those above −inf.
    """
    log_w = log_w.double()
    largest, rank = log_w.sort(-1, descending=True).values, torch.arange(log_w.shape[-1], device=log_w.device)
    parts_of_each = largest.isfinite().sum(-1, keepdim=True).double().sqrt().clamp_max(parts)
    # Sums of each weight and all that are smaller.
    others = largest.flip(-1).logcumsumexp(-1).flip(-1)
    bound = others - (parts_of_each - rank).clamp_min(0.0).log()
    m = (largest <= bound).int().argmax(-1, keepdim=True)
    return torch.where(m > 0, torch.minimum(log_w, bound.gather(-1, m)), log_w)
