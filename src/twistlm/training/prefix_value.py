"""The value of a prefix, E_p₀[φ | s_1:t] up to a factor, fitted on draws that are there: what dense labels are made of.

    log V_t(s_1:t) = a_t log(q/p₀)(s_1:t) + c_t log ψ_t(s_1:t) + b_t g(s_1:t) + u_t · x(s_t) + w_t · ĥ(s_<t)

with the three features of an informed twist (`twists.informed`), the row x of the last token in the model's output
matrix, and the model's features ĥ before it, both layer-normalised. A thousand draws teach a linear function of them
under a ridge penalty; and all of them are known of a token that was never followed up, so siblings have a value too.

The numbers of each step minimise KL(σ(s_1:t) ‖ π_t), π_t ∝ p₀V_t, which is convex in them (Zhao et al. 2024, equation
19). The penalty leads back to V_t = q/p₀: what is not known better than by the proposal stays as the proposal has it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from twistlm.core.logmath import ess, normalise
from twistlm.models.base import BaseLM

# Penalties to try, strongest first, on numbers in units of their feature's spread, times one over the effective number
# of draws; of the first three features a hundredth of that. Each fit starts from the last one.
RIDGES = (3000.0, 1000.0, 300.0, 100.0, 30.0, 10.0)
LIGHTER = 0.01
# Parts of the draws, each of which judges the others' fit once. Nats by which a step has to be better known than by the
# proposal alone, and the fewest effective draws to say so.
FOLDS = 4
LEAST_GAIN, FEWEST = 0.02, 20.0
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

    def value(self, tokens: Tensor, features: Tensor, numbers: Tensor) -> Tensor:
        """numbers · (x, ĥ) of tokens [n, …] after features [n, d'], float64: K siblings of a prefix at once."""
        total = torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device)
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
    """The numbers of one step, (a, c, b) first, float64; and by how many nats, held out, they are better than q's."""

    numbers: Tensor
    gain: float


def fit(features: Sequence[Tensor], log_ratio: Tensor, log_w: Tensor, groups: Sequence[Tensor]) -> Fitted:
    """The numbers of log V_t; those of q where the draws are too few to know better.

    Args:
        features: log(q/p₀), log ψ and the score of n prefixes [n, 3], then others [n, d] of any kind.
        log_ratio: log p₀(s_1:t) up to a constant, less the log density that each was drawn from [n].
        log_w: log p₀φ of the finished sequence, less the log density that it was drawn from [n].
        groups: the prefixes of each target.
    """
    x = torch.cat([part.double() for part in features], 1)
    start = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    start[0] = 1.0
    effective = sum(float(ess(log_w[index])) for index in groups if bool(log_w[index].isfinite().any()))
    if effective < FEWEST:
        return Fitted(start, 0.0)
    # A feature that never varies has no gradient, and stays what it was.
    spread = x.std(0, correction=0).clamp_min(1e-6)
    x /= spread
    lighter = torch.ones_like(start)
    lighter[:3] = LIGHTER
    origin = start * spread
    fold = torch.arange(len(x), device=x.device) % FOLDS
    folds = [
        (_Objective(x, log_ratio, log_w, groups, fold != k), _Objective(x, log_ratio, log_w, groups, fold == k))
        for k in range(FOLDS)
    ]
    before = [judging(origin) for _, judging in folds]
    now = [origin] * FOLDS
    best, chosen, found = LEAST_GAIN, None, origin
    for ridge in RIDGES:
        penalty = lighter * (ridge / effective)
        now = [_minimised(fitting, here, origin, penalty) for (fitting, _), here in zip(folds, now, strict=True)]
        after = [judging(here) for (_, judging), here in zip(folds, now, strict=True)]
        gain = float(torch.stack(before).mean() - torch.stack(after).mean())
        if chosen is not None and gain <= best:
            break
        if gain > best:
            best, chosen, found = gain, penalty, torch.stack(now).mean(0)
    if chosen is None:
        return Fitted(start, 0.0)
    whole = _Objective(x, log_ratio, log_w, groups, fold >= 0)
    return Fitted(_minimised(whole, found, origin, chosen) / spread, best)


class _Objective:
    """KL(σ(s_1:t) ‖ π_t) up to a constant, the mean over targets, as a function of the numbers."""

    def __init__(self, x: Tensor, log_ratio: Tensor, log_w: Tensor, groups: Sequence[Tensor], chosen: Tensor) -> None:
        parts = [index[chosen[index]] for index in groups]
        # Targets of which no draw carries weight teach nothing.
        parts = [index for index in parts if len(index) and bool(log_w[index].isfinite().any())]
        rows = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long, device=x.device)
        self.x, self.count = x[rows], len(parts)
        self.owner = torch.cat([torch.full_like(index, k) for k, index in enumerate(parts)]) if parts else rows
        self.log_ratio = torch.cat([log_ratio[i] - torch.logsumexp(log_ratio[i], 0) for i in parts] or [log_ratio[:0]])
        weights = torch.cat([normalise(log_w[index]) for index in parts] or [log_w[:0]])
        self.positive = weights @ self.x

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
