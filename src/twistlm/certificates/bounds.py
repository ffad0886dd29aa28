"""Lower and upper bounds on log Z, by importance sampling (IWAE) and by SMC.

Lower: E[log Ẑ] ≤ log Z by Jensen, with Ẑ from N proposal samples without resampling (Burda et al. 2016) or from SMC.
Upper: the same with one exact target sample among the N, kept throughout (Zhao et al. 2024, section 5.2; the SMC form
is conditional SMC, for which E[log Ẑ] ≥ log Z because E[1/Ẑ] = 1/Z). Both tighten as N grows; the gap between them
also bounds the symmetrised KL between SMC's samples and the target.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated

import torch
from annotated_types import Ge
from pydantic import Field, InstanceOf
from torch import Tensor

from twistlm.core.errors import ConfigError, ExactSamplesError
from twistlm.core.estimates import Estimate, mean
from twistlm.core.logmath import log_mean_exp
from twistlm.core.rng import Rng
from twistlm.sampling.cases import Case, Cases
from twistlm.sampling.exact.collection import ExactSamples
from twistlm.sampling.ranges import Ranges
from twistlm.sampling.sampler import BATCH, Sampler, in_batches

METHODS = ("iwae", "smc")
# Left out of files.
Unsaved = Annotated[InstanceOf[Tensor] | None, Field(exclude=True)]


def check_methods(methods: Sequence[str]) -> None:
    """Refuse what is no way to bound log Z.

    Raises:
        ConfigError: the message names the first that is not.
    """
    for method in methods:
        if method not in METHODS:
            raise ConfigError(f"method must be one of {', '.join(METHODS)}, not {method!r}")


@dataclass(frozen=True)
class Bounds:
    """A sandwich of log Z at one number of particles; `upper` is None without exact samples.

    `lowers` and `uppers` are each run's own values [runs], where they are known. If targets differ, run r is given the
    condition of the r-th exact sample, and the sandwich is of the mean of log Z over conditions. An upper
    bound that is infinite (q is 0 where an exact sample lies) gives way to the bound of φ, which is one of log Z.
    """

    method: str
    num_particles: Annotated[int, Ge(1)]
    lower: Estimate
    upper: Estimate | None
    lowers: Unsaved = field(default=None, repr=False, compare=False)
    uppers: Unsaved = field(default=None, repr=False, compare=False)

    @staticmethod
    def of(method: str, num_particles: int, lowers: Tensor, uppers: Tensor | None, ranges: Ranges) -> "Bounds":
        """From the log Ẑ of independent runs [runs], those of the upper bound with an exact sample each."""
        upper = None
        if uppers is not None and uppers.numel():
            upper = mean(uppers, low=ranges.ratio_low, high=ranges.ratio_high)
            if math.isinf(upper.value) and ranges.high is not None:
                upper = Estimate(ranges.high, -math.inf, ranges.high, upper.n)
        lower = mean(lowers, low=ranges.ratio_low, high=ranges.ratio_high)
        return Bounds(method, num_particles, lower, upper, lowers, uppers)

    @property
    def gap(self) -> float | None:
        """upper − lower; None where one of them is missing or infinite."""
        gap = math.inf if self.upper is None else self.upper.value - self.lower.value
        return gap if math.isfinite(gap) else None


def log_Z_bounds(
    rng: Rng,
    sampler: Sampler,
    cases: Cases,
    num_particles: int,
    *,
    method: str = "smc",
    exact: ExactSamples | None = None,
    batch: int = BATCH,
) -> Bounds:
    """Both bounds, each the mean over independent runs with its interval.

    Args:
        rng: source of randomness.
        sampler: what samples.
        cases: one for each run.
        num_particles: N.
        method: "iwae" (never resample) or "smc".
        exact: exact target samples of just these cases for the upper bound, a different one in each run; None gives
            the lower bound alone.
        batch: sequences in memory at a time; part of what a seed reproduces.

    Raises:
        ConfigError: unknown method, or no case.
        ExactSamplesError: fewer exact samples than runs.
    """
    check_methods((method,))
    if not cases:
        raise ConfigError("bounds take at least 1 run, and there is no case to run")
    if exact is not None and len(exact) < len(cases):
        raise ExactSamplesError(
            f"{len(cases)} runs of the upper bound need as many exact samples, and there are {len(exact)}; collect "
            "more or use fewer runs"
        )
    # Without any particle left Ẑ is 0, which its mean needs.
    sampler = replace(sampler, may_die=True, ess_threshold=0.0 if method == "iwae" else sampler.ess_threshold)

    def pieces(side: str, tokens: Tensor | None = None) -> list[Callable[[], Tensor]]:
        return [
            partial(
                _estimates,
                rng.fork(method, side, num_particles, at),
                sampler,
                some,
                num_particles,
                None if tokens is None else tokens[at : at + len(some)],
            )
            for at, some in in_batches(cases, num_particles, batch)
        ]

    below, above = pieces("lower"), [] if exact is None else pieces("upper", exact.samples.tokens)
    found = list(sampler.side_by_side([*below, *above]))
    lower, upper = torch.cat(found[: len(below)]), torch.cat(found[len(below) :]) if above else None
    # With a twist that weighs, the estimates are not bounded as φ is, whatever proposes.
    ranges = replace(sampler.ranges, is_base=sampler.model.is_base)
    return Bounds.of(method, num_particles, lower, upper, ranges)


def _estimates(rng: Rng, sampler: Sampler, cases: Cases, num_particles: int, retained: Tensor | None) -> Tensor:
    """log Ẑ of a run for each case [R]."""
    return sampler.smc(rng, cases, num_particles, retained=retained).log_Z_hat


def sandwich(
    rng: Rng, sampler: Sampler, case: Case, exact: ExactSamples | None, num_particles: int, num_runs: int
) -> Bounds:
    """Bounds by SMC at one case; at most one run for each exact sample."""
    if exact is not None:
        num_runs = min(num_runs, len(exact))
    return log_Z_bounds(rng, sampler, [case] * num_runs, num_particles, exact=exact)


def iwae_from_ratios(drawn: Tensor, exact: Tensor | None, num_particles: int, ranges: Ranges | None = None) -> Bounds:
    """IWAE bounds from log ratios that are there already, in disjoint groups.

    Args:
        drawn: log p₀φ/q of independent proposal samples [n].
        exact: the same of independent exact samples [m], drawn apart from those; None for the lower bound alone.
        num_particles: N; each lower bound takes N of the drawn, each upper bound N − 1 and one exact.
        ranges: what is known of them by definition.

    Raises:
        ConfigError: there are not enough for one group.
    """
    runs = drawn.numel() // num_particles
    if runs < 1:
        raise ConfigError(f"IWAE with {num_particles} particles needs as many samples, not {drawn.numel()}")
    lower = log_mean_exp(drawn[: runs * num_particles].view(runs, num_particles))
    upper = None
    if exact is not None:
        others = num_particles - 1
        runs = exact.numel() if others == 0 else min(exact.numel(), drawn.numel() // others)
        if runs >= 1:
            rest = drawn[: runs * others].view(runs, others)
            upper = log_mean_exp(torch.cat([exact[:runs].view(runs, 1), rest], -1))
    # Made from draws that serve elsewhere too: they are no runs of their own.
    return replace(Bounds.of("iwae", num_particles, lower, upper, ranges or Ranges()), lowers=None, uppers=None)


def main_bounds(bounds: Sequence[Bounds]) -> Bounds:
    """The bounds that count: at the largest N, those of the method with the narrower interval.

    Taking the best of all lower and of all upper bounds would select their errors too, until they cross.
    """
    largest = max(b.num_particles for b in bounds)
    return min((b for b in bounds if b.num_particles == largest), key=width)


def width(bounds: Bounds) -> float:
    """From the least that the lower bound may be to the most that the upper one may."""
    return (bounds.lower.high if bounds.upper is None else bounds.upper.high) - bounds.lower.low
