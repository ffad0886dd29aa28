"""Numbers with intervals. The package reports no other kind.

An interval accounts for what the values cannot have shown. Where they are known to lie in a range, its ends come from
the range and the values together (`core.limits`) and never collapse. Where one side is not known, what was never
seen is taken to be no worse than the worst that was, nor nearer than a nat; an end that even so says nothing is
infinite, and the statement is one-sided.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import AllowInfNan, BeforeValidator, PlainSerializer
from scipy.special import stdtrit
from torch import Tensor

from twistlm.core.errors import ConfigError
from twistlm.core.limits import Array, hall_limit, log_lower_limit, log_upper_limit, upper_limit
from twistlm.core.logmath import ess

CONFIDENCE = 0.95
# What is said to be impossible is so at this level.
ALARM = 0.999
# Without a bound on φ its mean has no upper limit unless so many draws, effectively, make it up.
MIN_ESS = 100.0


def _read(value: Any) -> Any:
    return float(value) if value in ("inf", "-inf", "nan") else value


def _written(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


# A number in files: JSON has no infinity, so it becomes the text "inf" or "-inf".
Number = Annotated[float, AllowInfNan(), BeforeValidator(_read), PlainSerializer(_written)]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % confidence interval [low, high], from `n` independent values.

    An infinite end says that the values do not limit the number on that side.
    """

    value: Number
    low: Number
    high: Number
    n: int

    def __str__(self) -> str:
        if self.is_exact:
            return f"{plain(self.value)} (exact)"
        if math.isinf(self.low) and math.isinf(self.high) and self.low < self.high:
            return "not known" if math.isfinite(self.value) else plain(self.value)
        left, right = "(" if math.isinf(self.low) else "[", ")" if math.isinf(self.high) else "]"
        value, low, high = (plain(number, self.digits()) for number in (self.value, self.low, self.high))
        return f"{value} {left}{low}, {high}{right}"

    def digits(self, least: int = 3) -> int:
        """Decimals to show it with: `least`, or as many as keep its ends apart."""
        width = self.high - self.low
        return max(least, -math.floor(math.log10(width))) if 0 < width < math.inf else least

    @property
    def half_width(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2

    @property
    def reach(self) -> float:
        """How far the farther end is from the value: value ± this holds the whole interval."""
        return max(self.high - self.value, self.value - self.low)

    @property
    def is_exact(self) -> bool:
        """Whether the number is known by definition, and not estimated."""
        return self.low == self.value == self.high and math.isfinite(self.value)

    def clipped(self, least: float = -math.inf, most: float = math.inf) -> "Estimate":
        """The same without what is impossible: everything below `least` or above `most`."""
        value, low, high = (min(max(x, least), most) for x in (self.value, self.low, self.high))
        return Estimate(value, low, high, self.n)

    @property
    def as_divergence(self) -> "Estimate":
        """The same as a KL, which is not below 0; with both ends infinite if that is all that is known of it."""
        found = self.clipped(least=0.0)
        return (
            Estimate(found.value, -math.inf, math.inf, self.n) if found.low == 0 and math.isinf(found.high) else found
        )

    @property
    def is_known(self) -> bool:
        """Whether anything limits the number."""
        return math.isfinite(self.low) or math.isfinite(self.high)

    def scaled(self, factor: float) -> "Estimate":
        """The number times a positive factor."""
        return Estimate(factor * self.value, factor * self.low, factor * self.high, self.n)


def plain(number: float, digits: int = 3) -> str:
    """A number as text: no "-0.000", and ∞ for what has no end."""
    if math.isinf(number):
        return "∞" if number > 0 else "−∞"
    text = f"{number:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def exactly(value: float, n: int = 1) -> Estimate:
    """A number that is known by definition."""
    return Estimate(value, value, value, n)


def mean(
    values: Tensor,
    *,
    low: float | None = None,
    high: float | None = None,
    least: int = 2,
    level: float = CONFIDENCE,
) -> Estimate:
    """The mean of independent values [n], with an interval that holds at the stated level for few and skewed ones too.

    Each end for itself. Where the range of the values is known on its side, it is Gaffke's limit (`core.limits`).
    Where it is not, it is the farther of two: Gaffke's with the worst value seen for the range, or one that is a nat
    from the mean if that is worse; and Student's, transformed by Hall's monotone cubic (Hall 1992, "On the removal of
    skewness by transformation"), which removes the first-order error of skewness.

    Args:
        values: in nats, if a side is not known.
        low: what no value can be below; −inf if they may be anything; None if it is not known.
        high: what no value can be above.
        least: so many values are needed for an end whose side is not known.
        level: of confidence.

    Raises:
        ConfigError: a value is missing (NaN) or there are none.
    """
    x = values.detach().double().flatten().cpu().numpy()
    n = len(x)
    if n == 0 or bool(np.isnan(x).any()):
        raise ConfigError(f"a mean needs values that are numbers, not {n} values of which some are NaN")
    middle = float(x.mean())
    if not math.isfinite(middle):
        return Estimate(middle, -math.inf, math.inf, n)
    tail = (1.0 - level) / 2
    below = -_limit(-x, None if low is None else -low, least, tail)
    above = _limit(x, high, least, tail)
    return Estimate(middle, min(below, middle), max(above, middle), n)


def _limit(x: Array, most: float | None, least: int, tail: float) -> float:
    """The upper end."""
    if most is not None:
        return upper_limit(x, max(most, float(x.max())), tail)
    if len(x) < max(2, least):
        return math.inf
    return max(upper_limit(x, max(float(x.max()), float(x.mean()) + 1.0), tail), hall_limit(x, tail))


def student(values: Sequence[float]) -> Estimate:
    """The mean of a few independent values with Student's symmetric interval: what "mean ± 95 %" over seeds means.

    Values that are all equal say nothing of their scatter, nor does a single one: the interval is infinite.

    Raises:
        ConfigError: a value is missing (NaN) or there are none.
    """
    n = len(values)
    if n == 0 or any(math.isnan(value) for value in values):
        raise ConfigError(f"a mean needs values that are numbers, not {n} values of which some are NaN")
    middle = math.fsum(values) / n if all(map(math.isfinite, values)) else sum(values)
    if n == 1 or not math.isfinite(middle) or min(values) == max(values):
        return Estimate(middle, -math.inf, math.inf, n)
    half = float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2)) * statistics.stdev(values) / math.sqrt(n)
    return Estimate(middle, middle - half, middle + half, n)


def difference(a: Estimate, b: Estimate) -> Estimate:
    """a − b for independent estimates: half-widths add in quadrature, each side for itself (Zou and Donner 2008)."""
    # What has a −∞ among its values has no finite mean, whatever it is taken from.
    value = math.inf if b.value == -math.inf else a.value - b.value
    if not math.isfinite(value):
        return Estimate(value, -math.inf, math.inf, min(a.n, b.n))
    low = value - math.hypot(a.value - a.low, b.high - b.value)
    high = value + math.hypot(a.high - a.value, b.value - b.low)
    return Estimate(value, low, high, min(a.n, b.n))


def log_of_mean(
    log_values: Tensor, *, low: float = -math.inf, high: float | None = None, level: float = CONFIDENCE
) -> Estimate:
    """log of the mean of exp(log_values) [n], whose values lie in [exp(low), exp(high)]: log Z from many Ẑ.

    The lower end needs no bound, since exp(·) ≥ 0. Without an upper one, the upper end is that of `mean`, by the delta
    method, where the effective number of values is at least `MIN_ESS`, and infinite where it is not.
    """
    x = log_values.detach().double().flatten().cpu().numpy()
    n, top, tail = len(x), float(x.max()), (1.0 - level) / 2
    value = top if math.isinf(top) else top + math.log(float(np.exp(x - top).mean()))
    if high is not None:
        above = log_upper_limit(x, max(high, top), tail)
    elif math.isinf(top) or float(ess(log_values.flatten())) < MIN_ESS:
        above = math.inf
    else:
        above = top + math.log(hall_limit(np.exp(x - top), tail))
    return Estimate(value, log_lower_limit(x, tail), above, n).clipped(low, math.inf if high is None else high)


def widened(found: Estimate, shared: Sequence[Estimate]) -> Estimate:
    """A mean over runs with an error that all of them share beside: `shared` are each run's own, of which it is like.

    Each side for itself; independent errors add in quadrature.
    """
    below = math.fsum(each.value - each.low for each in shared) / len(shared)
    above = math.fsum(each.high - each.value for each in shared) / len(shared)
    low = found.value - math.hypot(found.value - found.low, below)
    high = found.value + math.hypot(found.high - found.value, above)
    return Estimate(found.value, low, high, found.n)


def pooled(estimates: Sequence[Estimate]) -> Estimate:
    """Estimates of one number that share some of their evidence: their mean, weighted by precision.

    Their errors are taken to be one and the same, so the ends are weighted like the values and nothing is gained by
    their number. Those with an infinite end count only if all have one; then it is the one with the highest low end.
    """
    finite = [each for each in estimates if math.isfinite(each.half_width)]
    if not finite:
        return max(estimates, key=lambda each: (each.low, -each.high))
    exact = [each for each in finite if each.half_width == 0]
    if exact:
        return exact[0]
    precision = [each.half_width**-2 for each in finite]

    def weighted(values: Sequence[float]) -> float:
        return math.fsum(w * x for w, x in zip(precision, values, strict=True)) / math.fsum(precision)

    value, low, high = (weighted([getattr(each, name) for each in finite]) for name in ("value", "low", "high"))
    return Estimate(value, low, high, min(each.n for each in finite))


def midpoint(lower: Estimate, upper: Estimate) -> Estimate:
    """The middle of a sandwich, with the whole sandwich and its errors as the interval; −∞ where the lower end is."""
    value = lower.value if lower.value == -math.inf else (lower.value + upper.value) / 2
    return Estimate(value, min(lower.low, value), max(upper.high, value), min(lower.n, upper.n))
