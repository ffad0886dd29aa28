"""Certificates over a set of prompts: one for each, and means over them whose intervals count how prompts differ.

log Z varies between prompts far more than any divergence, so all is paired: with a sandwich, F and G of each prompt c,
each of which holds in expectation however few its draws, ::

    E_c[lower_c − F_c] ≤ E_c KL(q‖σ) ≤ E_c[upper_c − F_c],    E_c[G_c − upper_c] ≤ E_c KL(σ‖q) ≤ E_c[G_c − lower_c].

The prompts are taken for independent ones of a kind: a mean's interval is that of the differences over prompts.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from twistlm.certificates.bounds import Bounds
from twistlm.certificates.certificate import Certificate, OfPrompt
from twistlm.certificates.certify import certified
from twistlm.certificates.divergences import Divergences, ends_of_phi, withheld
from twistlm.certificates.evidence import FEWEST_EXACT, Evidence
from twistlm.certificates.log_Z import Source
from twistlm.certificates.spending import Spending
from twistlm.core.errors import ConfigError, TwistError
from twistlm.core.estimates import Estimate, mean, midpoint
from twistlm.core.logmath import log_mean_exp
from twistlm.core.progress import bar
from twistlm.core.rng import Rng
from twistlm.core.work import HERE, Engine
from twistlm.sampling.cases import Case, shares_of
from twistlm.sampling.sampler import Sampler, WorkerContext

# Draws with φ > 0 that a prompt takes to be counted, where others are left out.
FEWEST_HITS = 3


@dataclass(frozen=True)
class _Known:
    """What is known at one prompt.

    Attributes:
        certificate: of the sampler there.
        sandwiches: values with log Z between them in expectation: by the sampler itself, by all weights together, then
            by base draws if there are any; the upper one is what log Z is at most with 95 % where there is no exact
            sample. The second has a lower end wherever φ was met.
        g: the mean log p₀φ/q of exact samples; None without any.
        hits: draws of any kind with φ > 0.
    """

    certificate: Certificate
    sandwiches: tuple[tuple[float, float], ...]
    g: float | None
    hits: int

    @property
    def f(self) -> float:
        return self.certificate.divergences.f.value


@dataclass(frozen=True)
class CertifyPrompt:
    """A piece of work: what is known of the sampler at one of the prompts, or why that could not be had."""

    rng: Rng
    row: int
    given: Evidence
    spending: Spending

    def __call__(self, at: WorkerContext) -> "_Known | TwistError":
        """Do it."""
        try:
            return _at(self.rng, at.sampler, at.cases[self.row], self.given, self.spending)
        except TwistError as error:
            return error


def certify_prompts(
    rng: Rng,
    here: WorkerContext,
    names: Sequence[str],
    evidence: Sequence[Evidence],
    spending: Spending,
    engine: Engine = HERE,
) -> Certificate:
    """Certify a sampler at every prompt, and on the mean over prompts.

    Args:
        rng: source of randomness; every prompt has a stream by its name.
        here: what samples, and the prompts with their weights.
        names: what they are called.
        evidence: what is known of the target at each; its draws trained nothing there.
        spending: what it may cost at each prompt.
        engine: who certifies; its workers have such a context.

    Raises:
        ConfigError: the target differs by a condition, or a gap is asked for.
        TwistError: no prompt could be certified. Where some could not, they are left out, and named as an alarm.
    """
    sampler, cases = here.sampler, here.cases
    if sampler.is_conditional or spending.effort is not None:
        raise ConfigError("a set of prompts is certified without conditions and without a gap; leave them out")
    start = time.perf_counter()
    pieces = [
        CertifyPrompt(rng.fork(name), row, given, spending)
        for row, (name, given) in enumerate(zip(names, evidence, strict=True))
    ]
    made: dict[int, _Known] = {}
    failed: dict[str, TwistError] = {}
    with bar("certificates", len(pieces)) as report:
        for row, result in enumerate(engine.do(pieces, here)):
            if isinstance(result, TwistError):
                failed[names[row]] = result
            else:
                made[row] = result
            report(row + 1, names[row])
    if not made:
        raise next(iter(failed.values()))
    known, names = [made[row] for row in sorted(made)], [names[row] for row in sorted(made)]
    cases = [cases[row] for row in sorted(made)]
    # Where φ was never met nothing is known but a limit, which would make every mean infinite. And a rare prompt that
    # is counted for its only hit is counted with an estimate as lucky as that was.
    fewest = 1 if all(each.hits for each in known) else FEWEST_HITS
    by_prompt = tuple(
        OfPrompt(name, each.certificate, each.hits >= fewest) for name, each in zip(names, known, strict=True)
    )
    rows = [r for r, each in enumerate(by_prompt) if each.counts] or [*range(len(known))]
    counted = [known[r] for r in rows]
    # Of a single one its own certificate says how well it is known; how prompts differ would say nothing.
    whole = counted[0].certificate if len(rows) == 1 else _over(counted, shares_of([cases[r] for r in rows]), sampler)
    alarms = [f"{each.name}: {each.certificate.alarm}" for each in by_prompt if each.certificate.alarm]
    alarms += [f"{name} could not be certified: {' '.join(str(error).split())}" for name, error in failed.items()]
    return replace(
        whole,
        divergences=withheld(whole.divergences) if alarms else whole.divergences,
        by_prompt=by_prompt,
        alarm="; ".join(alarms),
        num_sequences=sum(each.certificate.num_sequences for each in by_prompt),
        num_tokens=sum(each.certificate.num_tokens for each in by_prompt),
        seconds=time.perf_counter() - start,
    )


def _at(rng: Rng, sampler: Sampler, case: Case, given: Evidence, spending: Spending) -> _Known:
    exact = given.exact
    enough = exact is not None and len(exact) >= FEWEST_EXACT
    known = given if enough else replace(given, exact=None)
    certificate, drawn, ratios = certified(rng, sampler, case, known, spending)
    kls = certificate.divergences
    if ratios is None and exact is not None:
        ratios = sampler.log_ratios(exact.samples)
    upper, own = kls.log_Z.high, certificate.log_Z_upper
    sets = [_Weights(drawn, ratios)]
    if given.witnesses:
        log_weights = torch.cat([each.below for each in given.witnesses if each.source is Source.DRAWS])
        sets.append(_Weights(log_weights, None if exact is None else exact.samples.log_ratios))
    sandwiches = [
        (certificate.log_Z_lower.value, upper if own is None else own.value),
        *(_between(some, upper) for some in (sets, *([sets[1:]] if len(sets) > 1 else []))),
    ]
    hits = sum(int(each.drawn.isfinite().sum()) for each in sets) + (0 if exact is None else len(exact))
    return _Known(certificate, tuple(sandwiches), None if ratios is None else float(ratios.mean()), hits)


@dataclass(frozen=True)
class _Weights:
    """log p₀φ/q of independent draws of one sampler [n], and of exact samples [m]; None without any."""

    drawn: Tensor
    exact: Tensor | None


def _between(sets: Sequence[_Weights], upper: float) -> tuple[float, float]:
    """Values with log Z between them in expectation, by sets of draws that count alike: log of the mean of their Ẑ.

    With an exact sample in the place of a draw of either set, chosen by a coin, E[1/Ẑ] = 1/Z: the target is then that
    of all draws times Ẑ/Z (as of one set: Zhao et al. 2024, section 5.2). Without any, `upper` is returned.
    """
    estimates = torch.stack([log_mean_exp(each.drawn) for each in sets])
    found = []
    for k, (drawn, exact) in enumerate((each.drawn, each.exact) for each in sets):
        if exact is None:
            return float(log_mean_exp(estimates)), upper
        joined = torch.logaddexp(torch.logsumexp(drawn[1:].double(), 0), exact.double()) - math.log(len(drawn))
        others = torch.cat([estimates[:k], estimates[k + 1 :]]).expand(len(exact), -1)
        found.append(log_mean_exp(torch.cat([joined.unsqueeze(-1), others], -1)).mean())
    return float(log_mean_exp(estimates)), float(torch.stack(found).mean())


def _mean(values: Sequence[float], shares: Tensor, low: float | None = None, high: float | None = None) -> Estimate:
    """The mean over prompts by their shares, of values that lie between `low` and `high`; None where that is unknown.

    Under unequal shares the heavy values decide, and less is known than by as many equal ones. Each end is the farther
    of two: as if all values scattered alike, whatever their share, and by the jackknife, which lets heavy ones scatter
    more (of residuals divided by what a value does not draw to itself, 1 − share: MacKinnon and White 1985, HC3).
    """
    x = torch.tensor(values, dtype=torch.float64)
    # Those of some prompts do not sum to one.
    shares = shares / shares.sum()
    n, middle = len(x), (x * shares).sum()
    if bool((shares * n - 1.0).abs().max() < 1e-9):
        return mean(x, low=low, high=high)
    if not bool(middle.isfinite()):
        return mean(middle.expand(n))
    alike, apart = (n * shares.square().sum()).sqrt().expand(n), n * shares / (1.0 - shares)
    ends = [_scattered(middle, times, x, about, low, high) for times, about in ((alike, x.mean()), (apart, middle))]
    found = Estimate(float(middle), min(each.low for each in ends), max(each.high for each in ends), n)
    return found.clipped(-math.inf if low is None else low, math.inf if high is None else high)


def _scattered(
    middle: Tensor, times: Tensor, x: Tensor, about: Tensor, low: float | None, high: float | None
) -> Estimate:
    """An interval about `middle` by residuals of x [n] so many `times` as large; their range follows."""
    start = middle - (times * (x - about)).mean()
    least = None if low is None else float((start + times * (low - about)).min())
    most = None if high is None else float((start + times * (high - about)).max())
    return mean(start + times * (x - about), low=least, high=most)


def _over(known: Sequence[_Known], shares: Tensor, sampler: Sampler) -> Certificate:
    """The means over prompts."""
    over = partial(_mean, shares=shares)
    # One kind of sandwich for all prompts: the best of each would be chosen for its errors.
    kinds = range(min(len(each.sandwiches) for each in known))
    kind = min(kinds, key=lambda k: _extent([each.sandwiches[k] for each in known]))
    lower, upper = ([each.sandwiches[kind][end] for each in known] for end in (0, 1))
    f, kls = [each.f for each in known], [each.certificate.divergences for each in known]
    # What has a −∞ among its values has no finite mean, whatever it is taken from.
    below, above = (
        [math.inf if b == -math.inf else a - b for a, b in zip(ends, f, strict=True)] for ends in (lower, upper)
    )
    # KL(σ‖q) and G are over the prompts that have exact samples.
    exact = [(each.g, low, high) for each, low, high in zip(known, lower, upper, strict=True) if each.g is not None]
    has_exact = torch.tensor([each.g is not None for each in known])
    over_exact = partial(_mean, shares=shares[has_exact])
    ranges = sampler.ranges
    q_target = midpoint(over(below), over(above))
    target_q = g = None
    if exact:
        g = over_exact([g for g, _, _ in exact])
        nearest, farthest = over_exact([g - high for g, _, high in exact]), over_exact([g - low for g, low, _ in exact])
        target_q = midpoint(nearest, farthest).as_divergence
    log_Z = midpoint(over(lower), over(upper))
    phi_low, phi_high = ends_of_phi(ranges)
    accepted = [each.certificate.acceptance for each in known]
    return Certificate(
        bounds=_bounds(known, over),
        divergences=Divergences(
            kl_q_target=q_target.as_divergence,
            kl_target_q=target_q,
            kl_q_prior=over([each.kl_q_prior.value for each in kls]).as_divergence,
            log_phi=over([each.log_phi.value for each in kls], low=ranges.low, high=ranges.high),
            phi=over([each.phi.value for each in kls], low=phi_low, high=phi_high).clipped(least=phi_low),
            log_Z=log_Z.clipped(most=math.inf if ranges.high is None else ranges.high),
            f=over(f),
            g=g,
        ),
        log_Z_source=Source.PROMPTS,
        ess_fraction=None,
        num_sequences=0,
        seconds=0.0,
        acceptance=None
        if any(each is None for each in accepted)
        else over([each.value for each in accepted if each is not None], low=0.0, high=1.0),
    )


def _extent(sandwiches: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """How wide they are, and of infinitely wide ones how high the lower ends are, the least first."""
    return sum(upper - lower for lower, upper in sandwiches), -sum(lower for lower, _ in sandwiches)


def _bounds(known: Sequence[_Known], over: Callable[[Sequence[float]], Estimate]) -> tuple[Bounds, ...]:
    """The means of the sandwiches that all prompts have."""
    made = []
    for at, first in enumerate(known[0].certificate.bounds):
        each = [one.certificate.bounds[at] for one in known]
        uppers = [bounds.upper.value for bounds in each if bounds.upper is not None]
        upper = over(uppers) if len(uppers) == len(each) else None
        made.append(Bounds(first.method, first.num_particles, over([b.lower.value for b in each]), upper))
    return tuple(made)
