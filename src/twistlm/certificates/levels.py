"""The levels of a score that a round of draws can teach to reach."""

import math

import torch
from torch import Tensor

from twistlm.certificates.effort import LEVELS
from twistlm.core.logmath import normalise

# A round learns the highest level that it can, and those that are so many times as likely.
MULTIPLES = (4, 16)
assert len(MULTIPLES) + 1 == LEVELS


def levels_of(log_phi: Tensor, weights: Tensor, goal: float, need: float) -> Tensor:
    """The levels [L] of draws of one case with log φ and weights [n]."""
    if len(log_phi) == 0:
        return torch.full((LEVELS,), -math.inf, dtype=torch.float64)
    order = log_phi.argsort(descending=True)
    log_phi, weights = log_phi[order].double(), weights[order]
    mass = weights.cumsum(0)
    enough = (mass.square() / weights.square().cumsum(0) >= need).nonzero()
    highest = float(log_phi[int(enough[0])]) if len(enough) else -math.inf
    highest = min(goal, highest if math.isfinite(highest) else float(log_phi[0]))
    if not math.isfinite(highest):
        return torch.full((LEVELS,), -math.inf, dtype=torch.float64)
    reached = mass[log_phi >= highest]
    places = torch.searchsorted(mass, reached[-1] * mass.new_tensor(MULTIPLES))
    likelier = log_phi[places.clamp_max(int(log_phi.isfinite().sum()) - 1)]
    return torch.cat([log_phi.new_tensor([highest]), likelier.clamp_max(highest)])


def chances(log_phi: Tensor, log_w: Tensor, levels: Tensor) -> Tensor:
    """The chance [L, n] of each draw of one case to be taken at each of the levels [L]."""
    return torch.stack([normalise(log_w.masked_fill(log_phi < level, -torch.inf)) for level in levels])
