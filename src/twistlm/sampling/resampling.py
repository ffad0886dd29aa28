"""Resampling schemes: which particles live on, given their weights.

Every scheme is one function `(rng, weights [R, N], retained) -> ancestors [R, N]` under which each slot's ancestor
is m with probability W_m marginally, which is all that unbiasedness of Ẑ needs (Chopin and Papaspiliopoulos, 2020,
chapter 9). With `retained=True` it draws from the *conditional* law given that slot 0 descends from particle 0,
as conditional SMC requires (Andrieu, Doucet and Holenstein, 2010; Chopin and Singh, 2015, for the schemes other than
multinomial). The conditional forms rest on one identity: if the slots of a scheme are cyclically shifted by a
uniform amount, slot 0 looks at a uniform point of [0, 1); given that it descends from particle 0, that point is
uniform on particle 0's cell, and everything else is as before.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from twistlm.core.errors import ResamplingError
from twistlm.core.registry import register
from twistlm.core.rng import Rng

Scheme = Callable[[Rng, Tensor, bool], Tensor]


@dataclass(frozen=True)
class Resampler:
    """A named scheme; `conditional` says whether it has an exact conditional form."""

    name: str
    scheme: Scheme
    conditional: bool

    def __call__(self, rng: Rng, weights: Tensor, retained: bool = False) -> Tensor:
        """Ancestors [R, N] for normalised weights [R, N], float64; particle 0 keeps slot 0 if `retained`.

        Raises:
            ResamplingError: `retained` is asked of a scheme without a conditional form.
        """
        if retained and not self.conditional:
            raise ResamplingError(
                f"resampler {self.name!r} has no conditional form, so it cannot keep an exact sample for an upper "
                "bound; use 'multinomial', 'stratified', 'systematic' or 'residual'"
            )
        return self.scheme(rng, weights, retained)


def resampler(name: str, *, conditional: bool) -> Callable[[Scheme], Resampler]:
    """Decorator: register a scheme. `conditional=True` promises that it honours `retained`."""

    def wrap(scheme: Scheme) -> Resampler:
        return register("resampler", name, summary=scheme.__doc__)(Resampler(name, scheme, conditional))

    return wrap


def invert(weights: Tensor, points: Tensor) -> Tensor:
    """Particle [R, n] into whose cell of the cumulative weights each point [R, n] in [0, 1) falls.

    A particle of weight zero has an empty cell and is never returned.
    """
    cumulative, points = weights.cumsum(-1), points.to(weights.device)
    index = torch.searchsorted(cumulative, points * cumulative[:, -1:], right=True)
    # points·total can round up to the total, past the last cell that is not empty.
    numbers = torch.arange(weights.shape[-1], device=weights.device)
    last = torch.where(weights > 0, numbers, 0).amax(-1, keepdim=True)
    return torch.minimum(index, last)


def stratified_points(rng: Rng, rows: int, count: int) -> Tensor:
    """One uniform point in each of `count` equal parts of [0, 1): [rows, count], for `invert`."""
    return (torch.arange(count) + rng.uniform((rows, count))) / count


def systematic_points(rng: Rng, rows: int, count: int) -> Tensor:
    """The same with one offset for all parts of a row."""
    return (torch.arange(count) + rng.uniform((rows, 1))) / count


def _uniform(rng: Rng, weights: Tensor, count: int, breaks: Tensor) -> Tensor:
    return rng.uniform((weights.shape[0], count), breaks).to(weights.device)


@resampler("multinomial", conditional=True)
def multinomial(rng: Rng, weights: Tensor, retained: bool) -> Tensor:
    """Independent draws: the simplest and the noisiest."""
    count = weights.shape[-1]
    points = _uniform(rng, weights, count - retained, weights.cumsum(-1))
    ancestors = invert(weights, points)
    return torch.cat([ancestors.new_zeros(weights.shape[0], 1), ancestors], -1) if retained else ancestors


@resampler("stratified", conditional=True)
def stratified(rng: Rng, weights: Tensor, retained: bool) -> Tensor:
    """One uniform in each of N strata (Kitagawa, 1996)."""
    count = weights.shape[-1]
    slots = torch.arange(count, device=weights.device)
    offsets = _uniform(rng, weights, count, (count * weights.cumsum(-1)).frac())
    if not retained:
        return invert(weights, (slots + offsets) / count)
    stratum, offset = _retained_point(rng, weights)
    order = (slots + stratum) % count
    offsets = torch.where(slots == 0, offset, offsets)
    return _keep_first(invert(weights, (order + offsets) / count))


@resampler("systematic", conditional=True)
def systematic(rng: Rng, weights: Tensor, retained: bool) -> Tensor:
    """One uniform for all strata: offspring counts are ⌊NW⌋ or ⌈NW⌉ (Carpenter, Clifford and Fearnhead, 1999)."""
    count = weights.shape[-1]
    slots = torch.arange(count, device=weights.device)
    if not retained:
        offset = _uniform(rng, weights, 1, (count * weights.cumsum(-1)).frac())
        return invert(weights, (slots + offset) / count)
    stratum, offset = _retained_point(rng, weights)
    return _keep_first(invert(weights, ((slots + stratum) % count + offset) / count))


@resampler("residual", conditional=True)
def residual(rng: Rng, weights: Tensor, retained: bool) -> Tensor:
    """⌊NW⌋ certain copies of each particle, the rest drawn from the remainders (Liu and Chen, 1998)."""
    rows = [_residual_row(rng, row, retained) for row in weights]
    return torch.stack(rows)


def _residual_row(rng: Rng, weights: Tensor, retained: bool) -> Tensor:
    count = weights.shape[0]
    expected = count * weights / weights.sum()
    # 3.9999999996 is 4 that was rounded, and must give four certain copies.
    copies = (expected + 1e-9).floor().long()
    remainder = (expected - copies).clamp_min(0.0)
    certain = torch.repeat_interleave(torch.arange(count, device=weights.device), copies)
    free = count - certain.shape[0]
    drawn = certain.new_empty(0)
    if free:
        probabilities = (remainder / remainder.sum()).unsqueeze(0)
        drawn = invert(probabilities, _uniform(rng, probabilities, free, probabilities.cumsum(-1))).squeeze(0)
    if not retained:
        return torch.cat([certain, drawn])
    # Slot 0 looks at a uniform point of particle 0's expected offspring: a certain copy, or one of the free draws
    # (all alike, so say the first), which is then particle 0.
    breaks = (copies[:1] / expected[:1]).unsqueeze(0)
    point = _uniform(rng, weights.unsqueeze(0), 1, breaks).item() * expected[0]
    if free and point >= copies[0]:
        drawn[0] = 0
        return torch.cat([drawn, certain])
    # A weight that rounding took away altogether still keeps its slot.
    certain[:1] = 0
    return torch.cat([certain, drawn])


def _retained_point(rng: Rng, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Stratum and offset [R, 1] of a point uniform on particle 0's cell [0, W_0)."""
    count = weights.shape[-1]
    share = count * weights[:, :1] / weights.sum(-1, keepdim=True)
    cuts = torch.arange(1, count + 1, device=weights.device) / share
    # Within a stratum the other slots move with the offset, so their breaks count as well.
    inner = (count * weights.cumsum(-1)).frac()
    breaks = torch.cat([(inner + k) / share for k in range(count)] + [cuts], -1)
    point = _uniform(rng, weights, 1, breaks) * share
    stratum = point.floor().clamp_max(count - 1)
    return stratum, point - stratum


def _keep_first(ancestors: Tensor) -> Tensor:
    """Slot 0 holds particle 0 by construction; rounding at a cell's edge must not undo that."""
    ancestors[:, 0] = 0
    return ancestors
