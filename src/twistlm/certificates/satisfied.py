"""How likely is it that a text satisfies hard constraints? Nothing is learned for it but what their automaton can use.

Half of the draws are by the exact twist of the constraints, which knows what is likely to come; half by what earlier
draws have not ruled out (`twistlm.sampling.exact.ruled_out`). Weighed against the mixture of the two, every draw's
p₀/q̄ is at most 2U, with U the bound on the probability that holds for certain: so the interval allows for all that
was never drawn, and is narrow where the twist is good.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from twistlm.certificates.effort import Effort, Search
from twistlm.certificates.events import Event, chosen
from twistlm.certificates.probability import Probability, PromptProbability, chance, seen
from twistlm.core.errors import ConfigError
from twistlm.core.estimates import CONFIDENCE, Estimate
from twistlm.core.logmath import ess
from twistlm.core.progress import bar
from twistlm.core.rng import Rng
from twistlm.potentials.constraint import Constraint
from twistlm.potentials.protocol import Potential
from twistlm.sampling.cases import Case, shares_of
from twistlm.sampling.constraining import num_fitted
from twistlm.sampling.explored import Explored, precision
from twistlm.sampling.sampler import BATCH, Sampler
from twistlm.sampling.samples import Samples
from twistlm.sampling.smc import Keep
from twistlm.sampling.target import Target

# The first batch of draws that rule out; each is twice as large as the one before, up to `BATCH`.
FIRST = 32
# Of a round's draws those that rule out before any estimate; and fresh ones of each, unless it is said how many.
RULING = 0.25


def only_constraints(potential: Potential) -> bool:
    """Whether φ is 1 where constraints that samplers keep to are satisfied, and 0 elsewhere."""
    parts = getattr(potential, "parts", (potential,))
    return all(isinstance(part, Constraint) and part.constrain for part in parts)


def satisfied(
    target: Target, thresholds: Sequence[float], search: Search, seed: int, report: Callable[[str], None] | None
) -> list[Probability]:
    """P[a text satisfies the constraints], for each threshold the same.

    Args:
        target: whose φ is made of constraints alone.
        thresholds: above 0; φ is 0 or 1.
        search: how many draws: a quarter of `num_draws` rule out, and `num_samples` (by default `num_draws`) estimate.
        seed: of everything random.
        report: is told what it will take, and what was ruled out.

    Raises:
        ConfigError: a threshold is above 1, or the constraints cannot be met.
    """
    if max(thresholds) > 1:
        raise ConfigError(f"threshold = {max(thresholds):g} is never reached: a constraint's φ is 0 or 1")
    # Refused, if it cannot be met, before anything is said of what it will take.
    assert target.constraint is not None
    count = search.num_draws if search.num_samples is None else search.num_samples
    num_fresh = max(2, Effort.of(replace(search, num_samples=count), len(target.cases)).samples_each // 2)
    ruling = max(FIRST, round(RULING * search.num_draws / len(target.cases)))
    tell = report or (lambda line: None)
    total = len(target.cases) * (2 * num_fresh + ruling)
    fitted = num_fitted(target.constraint)
    spent = total + fitted
    tell(f"price: {spent:,} draws of at most {target.num_tokens} tokens, {fitted:,} of them to fit the twist")
    rng, found = Rng(seed, ("satisfied",)), list[_Found]()
    with bar(f"drawing {total:,} texts", total) as progress:
        work = _Work(target, search, lambda done: progress(done, ""))
        for number, (case, name) in enumerate(zip(target.cases, target.prompts.names, strict=True)):
            found.append(work.at(rng.fork(number), case, ruling, num_fresh))
            where = "" if len(target.cases) == 1 else f"prompt {name!r}: "
            tell(f"{where}at most {found[-1].most:.3g}, for certain, by {ruling:,} draws")
    return [_over(target, found, threshold, spent) for threshold in thresholds]


@dataclass(frozen=True)
class _Found:
    """At one prompt: log p₀/q̄ of the fresh draws [n], the bound that holds for certain, and some of the texts."""

    log_w: Tensor
    most: float
    events: tuple[Event, ...]

    def chance(self, level: float = CONFIDENCE) -> Estimate:
        """With an interval that allows for all that was never drawn."""
        return _chance(self.log_w, 2 * self.most, self.most, level)


class _Work:
    """Draws at one prompt after another."""

    def __init__(self, target: Target, search: Search, done: Callable[[int], None]) -> None:
        self.target, self.search, self.done, self.drawn = target, search, done, 0
        self.steered = target.sampler()
        self.dtype = precision(target.lm, target.prompt_tokens)

    def at(self, rng: Rng, case: Case, ruling: int, count: int) -> _Found:
        """What so many draws rule out at a prompt, and so many fresh ones of either kind say."""
        most, ruled = self._ruled(rng.fork("ruling"), case, ruling)
        both = (self.steered, ruled)
        parts = [self._fresh(rng.fork("fresh", number), both, number, case, count) for number in range(len(both))]
        drawn, log_q = Samples.concatenate([part for part, _ in parts]), torch.cat([each for _, each in parts], 1)
        # φ is 1, but where a grammar was cut off by the limit.
        log_w = drawn.log_p.sum(-1) + drawn.log_phi - torch.logsumexp(log_q, 0) + math.log(2)
        return _Found(log_w, most, self._events(rng.fork("events"), drawn, log_w))

    def _ruled(self, rng: Rng, case: Case, count: int) -> tuple[float, Sampler]:
        """The certain bound after so many draws, and the sampler of what is left."""
        constraint = self.target.constraint
        assert constraint is not None
        ruled_out, done, size = Explored(constraint, self.dtype, bounds=True), 0, FIRST

        def sampler() -> Sampler:
            return replace(self.steered, model=self.steered.model.constrained(ruled_out.twist))

        while done < count:
            drawn = self._draw(rng.fork(done), sampler(), case, min(size, count - done), features=False)
            ruled_out.learn(drawn, 0.0)
            done, size = done + len(drawn), min(2 * size, BATCH)
        return math.exp(ruled_out.log_value(case.prompt)), sampler()

    def _fresh(self, rng: Rng, both: Sequence[Sampler], number: int, case: Case, count: int) -> tuple[Samples, Tensor]:
        """Draws of one of two samplers, and log q of each by either [2, n]."""
        drawn, log_q = [], []
        for at in range(0, count, BATCH):
            part = self._draw(rng.fork(at), both[number], case, min(BATCH, count - at), features=True)
            log_q.append(torch.stack([sampler.densities(part).log_q.sum(-1) for sampler in both]))
            # What was kept for that alone is large.
            drawn.append(part.bare())
        return Samples.concatenate(drawn), torch.cat(log_q, 1)

    def _draw(self, rng: Rng, sampler: Sampler, case: Case, count: int, *, features: bool) -> Samples:
        before = self.drawn
        drawn = sampler.draw(
            rng, [case], count, keep=Keep(features=features), done=lambda so_far: self.done(before + so_far)
        )
        self.drawn += count
        return drawn

    def _events(self, rng: Rng, drawn: Samples, log_w: Tensor) -> tuple[Event, ...]:
        if self.search.num_events == 0 or not bool(log_w.isfinite().any()):
            return ()
        index, weights = chosen(rng, drawn.tokens, log_w, self.search.num_events)
        texts, log_p = self.target.lm.decode(list(drawn.tokens[index])), drawn.log_p[index].sum(-1)
        return tuple(Event(text, float(w), 0.0, float(p)) for text, w, p in zip(texts, weights, log_p, strict=True))


def _chance(log_w: Tensor, highest: float, most: float, level: float = CONFIDENCE) -> Estimate:
    """The mean of weights that are none above `highest`, but for rounding."""
    weights = log_w.exp()
    return chance(weights, max(highest, float(weights.max())), level, min(1.0, most))


def _over(target: Target, found: Sequence[_Found], threshold: float, num_draws: int) -> Probability:
    """At each prompt, and over all of them by their shares."""
    shares, together = shares_of(target.cases), 1 - (1 - CONFIDENCE) / len(found)
    by_prompt = tuple(
        PromptProbability(
            name=name,
            share=share,
            value=each.chance(),
            seen=seen(each.log_w.exp(), min(1.0, each.most)),
            simultaneous=each.chance(together),
            hits=int(each.log_w.isfinite().sum()),
            num_draws=each.log_w.numel(),
            events=each.events,
        )
        for each, name, share in zip(found, target.prompts.names, shares.tolist(), strict=True)
    )
    factors, uppers = shares * len(found), torch.tensor([each.most for each in found], dtype=torch.float64)
    log_w = (torch.stack([each.log_w for each in found]) + factors.log().unsqueeze(-1)).flatten()
    most = float((shares * uppers).sum())
    return Probability(
        threshold=threshold,
        value=_chance(log_w, 2 * float((factors * uppers).max()), most),
        seen=seen(log_w.exp(), min(1.0, most)),
        self_normalised=float(log_w.exp().mean()),
        log_upper=None,
        hits=int(log_w.isfinite().sum()),
        num_draws=log_w.numel(),
        ess=float(ess(log_w)),
        num_tokens=num_draws * target.num_tokens,
        rounds=0,
        by_prompt=by_prompt,
    )
