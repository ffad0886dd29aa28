"""What weighs beside the twist: what the potential says of a prefix, and how far the proposal has gone already::

    log ψ̃_t(s_1:t) = a_t log (q/p₀)(s_1:t) + c_t log ψ_t(s_1:t) + b_t g(s_1:t)

with g the potential's score of a text that is not finished (`potentials.prefixes`). The proposal q, which needs ψ of
every token of the vocabulary, goes on being that of ψ; the weights, which need it of the token that was drawn, listen.
SMC is exactly unbiased for any numbers (a, c, b), as for any twist.

The numbers of each step minimise KL(σ(s_1:t) ‖ π_t), π_t ∝ p₀ψ̃_t, which is convex in them (contrastive twist
learning: Zhao et al. 2024, equation 21). (1, 0, 0) makes π_t = q: weights stay as they are, and nothing is resampled.
That is where the fit starts from and what its ridge penalty leads back to: a step at which nothing better is known,
as judged by draws that took no part, is left out, and SMC does not resample there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from twistlm.core.errors import ConfigError
from twistlm.core.logmath import effective, normalise

# Penalties to try, on numbers in units of their feature's spread, times one over the effective number of draws.
RIDGES = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3)
# Parts of the draws, each of which judges the others' fit once.
FOLDS = 4
# Nats by which a step has to be better known than by the proposal alone, and the fewest effective draws to say so.
LEAST_GAIN, FEWEST = 0.02, 20.0
MAX_ITERATIONS, ENOUGH = 50, 1e-8
# (a, c, b) by which π_t = q.
ALONE = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)


@dataclass(frozen=True)
class Informed:
    """The numbers (a, c, b) of the steps at which SMC weighs; at all others weights stay as they are.

    Attributes:
        steps: which t, 1 ≤ t < T, in order.
        coefficients: (a_t, c_t, b_t) for each of them, float64 [S, 3]; b is 0 where the potential scores no prefixes.

    Raises:
        ConfigError: the steps are not in order, or there are not three finite numbers for each.
    """

    steps: tuple[int, ...]
    coefficients: Tensor

    def __post_init__(self) -> None:
        """Check both."""
        steps = self.steps
        if self.coefficients.shape != (len(steps), 3) or not bool(self.coefficients.isfinite().all()):
            raise ConfigError(f"an informed twist needs three finite numbers for each of its {len(steps)} steps")
        if list(steps) != sorted(set(steps)) or (steps and steps[0] < 1):
            raise ConfigError(f"steps must be in order and from 1 on, not {steps}")

    def at(self, step: int) -> Tensor | None:
        """(a, c, b) after `step` tokens; None where weights stay as they are."""
        return self.coefficients[self.steps.index(step)] if step in self.steps else None

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"steps": list(self.steps), "coefficients": self.coefficients.tolist()}

    @staticmethod
    def from_dict(fields: Mapping[str, Any]) -> "Informed":
        """What `as_dict` gave."""
        rows = torch.tensor(fields["coefficients"], dtype=torch.float64).view(-1, 3)
        return Informed(tuple(fields["steps"]), rows)


@dataclass(frozen=True)
class Prefixes:
    """n prefixes of one length, in groups of one target each, with what a fit of their value needs.

    Attributes:
        features: log(q/p₀), log ψ and the score (0 where there is none) of each, finite float64 [n, 3].
        log_ratio: log p₀(s_1:t) up to a constant, less the log density that each was drawn from [n].
        log_w: log p₀φ of the finished sequence, less the log density that it was drawn from [n].
        groups: the prefixes of each target.
    """

    features: Tensor
    log_ratio: Tensor
    log_w: Tensor
    groups: Sequence[Tensor]

    def part(self, chosen: Tensor) -> "Prefixes":
        """Those that are `chosen` [n]; groups in which no draw carries weight teach nothing and go."""
        place = torch.cumsum(chosen, 0) - 1
        groups = [place[index[chosen[index]]] for index in self.groups]
        log_w = self.log_w[chosen]
        groups = [index for index in groups if len(index) and bool(log_w[index].isfinite().any())]
        return Prefixes(self.features[chosen], self.log_ratio[chosen], log_w, groups)

    @property
    def effective(self) -> float:
        """Effective number of draws of the targets."""
        return effective(self.log_w, self.groups)


def fit(prefixes: Prefixes) -> tuple[Tensor, float]:
    """(a, c, b) [3] that minimise KL(σ(s_1:t) ‖ π_t), and by how many nats less it is than KL(σ(s_1:t) ‖ q), held out.

    (1, 0, 0) and 0 where the draws are too few to know better.
    """
    prefixes = prefixes.part(torch.ones(len(prefixes.log_w), dtype=torch.bool))
    if prefixes.effective < FEWEST:
        return ALONE, 0.0
    fold = torch.arange(len(prefixes.log_w)) % FOLDS
    gains = torch.zeros(len(RIDGES), dtype=torch.float64)
    for number in range(FOLDS):
        fitted, judged = prefixes.part(fold != number), prefixes.part(fold == number)
        if not fitted.groups or not judged.groups:
            return ALONE, 0.0
        found, before = ALONE, objective(judged, ALONE)
        for k, ridge in enumerate(RIDGES):
            found = _minimised(fitted, found, ridge / fitted.effective)
            gains[k] += (before - objective(judged, found)) / FOLDS
    best = int(gains.argmax())
    if float(gains[best]) < LEAST_GAIN:
        return ALONE, 0.0
    return _minimised(prefixes, ALONE, RIDGES[best] / prefixes.effective), float(gains[best])


def objective(prefixes: Prefixes, coefficients: Tensor) -> float:
    """KL(σ(s_1:t) ‖ π_t) up to a constant, the mean over targets."""
    return sum(_moments(prefixes, index, coefficients)[0] for index in prefixes.groups) / len(prefixes.groups)


def _moments(prefixes: Prefixes, index: Tensor, coefficients: Tensor) -> tuple[float, Tensor, Tensor]:
    """The objective of one target with its gradient [3] and Hessian [3, 3]."""
    features = prefixes.features[index]
    log_ratio = prefixes.log_ratio[index] - torch.logsumexp(prefixes.log_ratio[index], 0)
    log_psi = features @ coefficients
    positive = normalise(prefixes.log_w[index]) @ features
    log_pi = log_ratio + log_psi
    total = torch.logsumexp(log_pi, 0)
    weights = (log_pi - total).exp()
    mean = weights @ features
    spread = (features * weights.unsqueeze(-1)).T @ features - torch.outer(mean, mean)
    return float(total - positive @ coefficients), mean - positive, spread


def _minimised(prefixes: Prefixes, start: Tensor, ridge: float) -> Tensor:
    """The minimiser [3] by Newton's method with halved steps."""
    # A feature that never varies has no gradient, and stays what it was.
    penalty = ridge * prefixes.features.var(0, correction=0).clamp_min(1e-6)

    def value(coefficients: Tensor) -> float:
        return objective(prefixes, coefficients) + 0.5 * float(penalty @ (coefficients - ALONE).square())

    now, best = start, value(start)
    for _ in range(MAX_ITERATIONS):
        parts = [_moments(prefixes, index, now) for index in prefixes.groups]
        gradient = torch.stack([part[1] for part in parts]).mean(0) + penalty * (now - ALONE)
        curvature = torch.stack([part[2] for part in parts]).mean(0) + torch.diag(penalty)
        move, size = torch.linalg.solve(curvature, gradient), 1.0
        while size > 1e-4 and (after := value(now - size * move)) > best:
            size /= 2
        if size <= 1e-4 or best - after < ENOUGH:
            break
        now, best = now - size * move, after
    return now
