"""The value of a prefix, E_p₀[φ | s_1:t] up to a factor, fitted on draws that are there; dense labels are made of it::

    log V_t(s_1:t) = a_t log(q/p₀)(s_1:t) + c_t log ψ_t(s_1:t) + b_t g(s_1:t) + u_t · x(s_t) + w_t · ĥ(s_<t)

with the three features of an informed twist (`twists.informed`), the row x of the last token in the model's output
matrix, and the model's features ĥ before it, both layer-normalised. A thousand draws teach a linear function of them
under a ridge penalty; and all of them are known of a token that was never followed up, so siblings have a value too.

The numbers of each step minimise KL(σ(s_1:t) ‖ π_t), π_t ∝ p₀V_t, which is convex in them (Zhao et al. 2024, equation
21). The penalty leads back to V_t = q/p₀: what is not known better than by the proposal stays as the proposal has it.

Controlled decoding wants E_p₀[log φ | s_1:t] instead (Mudgal et al. 2024). That is a regression: least squares of log φ
on the same features, under a ridge penalty that leads back to its mean over all texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from twistlm.core.logmath import effective, normalise
from twistlm.models.base import BaseLM
from twistlm.twists.informed import FEWEST, FOLDS, LEAST_GAIN, Prefixes

# Penalties to try, strongest first, on numbers in units of their feature's spread, times one over the effective number
# of draws; of the first three features a hundredth of that. Each fit starts from the last one.
RIDGES = (3000.0, 1000.0, 300.0, 100.0, 30.0, 10.0)
LIGHTER = 0.01
MAX_ITERATIONS = 30


class Words:
    """Fixed features of tokens and of what comes before them, as far as a model has them.

    Args:
        lm: the base model. One without an output matrix, or whose features are numbers of nodes, has none.
    """

    def __init__(self, lm: BaseLM) -> None:
        unembedding: Tensor | None = getattr(lm, "unembedding", None)
        self.table = None if unembedding is None else _normal(unembedding.detach())

    def beside(self, tokens: Tensor, features: Tensor) -> list[Tensor]:
        """x(s_t) [n, d] and ĥ(s_<t) [n, d'] of n tokens and the features before them, float32; as many as there are."""
        found = [] if self.table is None else [self.table[tokens]]
        return [*found, _normal(features)] if features.is_floating_point() and features.dim() == 2 else found

    def value(self, told: Tensor, tokens: Tensor, features: Tensor, numbers: Tensor) -> Tensor:
        """log V_t of tokens [n, …] after features [n, d'], float64: K siblings of a prefix at once.

        `told`: log(q/p₀), log ψ and the score of each [n, …, 3].
        """
        total, numbers = told @ numbers[:3], numbers[3:]
        if self.table is not None:
            width = self.table.shape[1]
            total = total + (self.table.double() @ numbers[:width])[tokens]
            numbers = numbers[width:]
        if len(numbers):
            before = _normal(features).double() @ numbers
            total = total + before.view(-1, *[1] * (tokens.dim() - 1))
        return total


def _normal(x: Tensor) -> Tensor:
    return layer_norm(x.float(), x.shape[-1:])


@dataclass(frozen=True)
class Fitted:
    """The numbers of one step, (a, c, b) first, float64; and by how much, held out, they are better than what is known.

    In nats that KL(σ(s_1:t) ‖ π_t) is less than q's; of a mean, the share of log φ's variance that is explained.
    """

    numbers: Tensor
    gain: float


def fit(prefixes: Prefixes) -> Fitted:
    """The numbers of log V_t; those of q where the draws are too few to know better.

    Of the features [n, d] the first three are log(q/p₀), log ψ and the score, the others of any kind.
    """
    prefixes = prefixes.part(torch.ones(len(prefixes.log_w), dtype=torch.bool, device=prefixes.log_w.device))
    count = prefixes.effective
    start = torch.zeros(prefixes.features.shape[1], dtype=torch.float64, device=prefixes.log_w.device)
    start[0] = 1.0
    if count < FEWEST:
        return Fitted(start, 0.0)
    # A feature that never varies has no gradient, and stays what it was.
    spread = prefixes.features.std(0, correction=0).clamp_min(1e-6)
    prefixes = replace(prefixes, features=prefixes.features / spread)
    origin = start * spread
    fold = torch.arange(len(prefixes.log_w), device=start.device) % FOLDS
    folds = [(_Objective(prefixes.part(fold != k)), _Objective(prefixes.part(fold == k))) for k in range(FOLDS)]
    before = [judging(origin) for _, judging in folds]
    now = [origin] * FOLDS
    best, chosen, found = LEAST_GAIN, None, origin
    for penalty in _penalties(start, count):
        now = [_minimised(fitting, here, origin, penalty) for (fitting, _), here in zip(folds, now, strict=True)]
        after = [judging(here) for (_, judging), here in zip(folds, now, strict=True)]
        gain = float(torch.stack(before).mean() - torch.stack(after).mean())
        if chosen is not None and gain <= best:
            break
        if gain > best:
            best, chosen, found = gain, penalty, torch.stack(now).mean(0)
    if chosen is None:
        return Fitted(start, 0.0)
    return Fitted(_minimised(_Objective(prefixes), found, origin, chosen) / spread, best)


def fit_mean(features: Tensor, log_phi: Tensor, log_ratio: Tensor, groups: Sequence[Tensor]) -> Fitted:
    """The numbers of E_p₀[log φ | s_1:t] up to a constant of each target; zeros where the draws are too few to know.

    Args:
        features: of prefixes [n, d], the first three log(q/p₀), log ψ and the score.
        log_phi: log φ of the finished sequences, finite [n].
        log_ratio: log p₀ of the finished sequences, less the log density that each was drawn from [n].
        groups: the prefixes of each target.
    """
    weights, x, y = torch.zeros_like(log_ratio), features.clone(), log_phi.clone()
    for index in groups:
        share = normalise(log_ratio[index])
        weights[index] = share / len(groups)
        # What a target's texts have in common is its constant's.
        x[index] -= share @ x[index]
        y[index] -= share @ y[index]
    count, variance = effective(log_ratio, groups), float(weights @ y.square())
    nothing = Fitted(torch.zeros_like(x[0]), 0.0)
    if count < FEWEST or variance <= 0:
        return nothing
    spread = (weights @ x.square()).sqrt().clamp_min(1e-6)
    x, y = x / spread, y / variance**0.5
    fold = torch.arange(len(y), device=y.device) % FOLDS
    parts = [_Squares.of(x[fold == k], y[fold == k], weights[fold == k]) for k in range(FOLDS)]
    whole = sum(parts[1:], parts[0])
    best, chosen = LEAST_GAIN, None
    for penalty in _penalties(spread, count):
        gain = sum(part.explained((whole - part).solved(penalty)) for part in parts)
        if chosen is not None and gain <= best:
            break
        if gain > best:
            best, chosen = gain, penalty
    return nothing if chosen is None else Fitted(whole.solved(chosen) * variance**0.5 / spread, best)


def _penalties(numbers: Tensor, count: float) -> list[Tensor]:
    """On each of the numbers, whose first three are light, by so many effective draws; strongest first."""
    lighter = torch.ones_like(numbers)
    lighter[:3] = LIGHTER
    return [lighter * (ridge / count) for ridge in RIDGES]


@dataclass(frozen=True)
class _Squares:
    """What least squares need of weighted rows: Σ w, Σ w x xᵀ and Σ w x y."""

    weight: float
    products: Tensor
    towards: Tensor

    @staticmethod
    def of(x: Tensor, y: Tensor, weights: Tensor) -> "_Squares":
        weighted = weights.unsqueeze(-1) * x
        return _Squares(float(weights.sum()), x.T @ weighted, y @ weighted)

    def __add__(self, other: "_Squares") -> "_Squares":
        return _Squares(self.weight + other.weight, self.products + other.products, self.towards + other.towards)

    def __sub__(self, other: "_Squares") -> "_Squares":
        return _Squares(self.weight - other.weight, self.products - other.products, self.towards - other.towards)

    def solved(self, penalty: Tensor) -> Tensor:
        """The minimiser of the mean squared error with that ridge penalty."""
        curvature = self.products / self.weight + torch.diag(penalty)
        numbers: Tensor = torch.linalg.solve(curvature, self.towards / self.weight)
        return numbers

    def explained(self, numbers: Tensor) -> float:
        """By how much `numbers` bring the squared error below Σ w y²."""
        return float(2 * self.towards @ numbers - numbers @ self.products @ numbers)


class _Objective:
    """KL(σ(s_1:t) ‖ π_t) up to a constant, the mean over targets, with a gradient for however many numbers."""

    def __init__(self, prefixes: Prefixes) -> None:
        groups, device = prefixes.groups, prefixes.log_w.device
        rows = torch.cat([torch.zeros(0, dtype=torch.long, device=device), *groups])
        self.x, self.count = prefixes.features[rows], len(groups)
        sizes = torch.tensor([len(index) for index in groups], dtype=torch.long, device=device)
        self.owner = torch.arange(len(groups), device=device).repeat_interleave(sizes)
        none, ratio, log_w = prefixes.log_w[:0], prefixes.log_ratio, prefixes.log_w
        self.log_ratio = torch.cat([none, *[ratio[index] - torch.logsumexp(ratio[index], 0) for index in groups]])
        self.positive = torch.cat([none, *[normalise(log_w[index]) for index in groups]]) @ self.x

    def __call__(self, numbers: Tensor) -> Tensor:
        if self.count == 0:
            return numbers.new_zeros(())
        log_pi = self.log_ratio + self.x @ numbers
        top = torch.full((self.count,), -torch.inf, dtype=log_pi.dtype, device=log_pi.device)
        top = top.scatter_reduce(0, self.owner, log_pi.detach(), "amax")
        sums = torch.zeros_like(top).index_add(0, self.owner, (log_pi - top[self.owner]).exp())
        return ((top + sums.log()).sum() - self.positive @ numbers) / self.count


def _minimised(objective: _Objective, start: Tensor, origin: Tensor, penalty: Tensor) -> Tensor:
    """The minimiser of the objective with a ridge penalty towards `origin`."""
    numbers = start.clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS([numbers], max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimiser.zero_grad()
        value = objective(numbers) + 0.5 * (penalty * (numbers - origin).square()).sum()
        value.backward()
        return value.item()

    optimiser.step(closure)
    return numbers.detach()
