"""Numbers with intervals. The package reports no other kind."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.special import stdtrit
from torch import Tensor

from twistlm.errors import ConfigError

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % confidence interval [low, high], from `n` independent values; infinite if n < 2."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def half_width(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2

    def as_dict(self) -> dict[str, float | int | str]:
        """JSON values. JSON has no infinity: it becomes the text "inf" or "-inf"."""
        ends = {"value": self.value, "low": self.low, "high": self.high}
        return {**{name: end if math.isfinite(end) else str(end) for name, end in ends.items()}, "n": self.n}

    @staticmethod
    def from_dict(fields: Mapping[str, Any]) -> "Estimate":
        """The inverse of `as_dict`."""
        return Estimate(float(fields["value"]), float(fields["low"]), float(fields["high"]), fields["n"])


def mean(values: Tensor) -> Estimate:
    """The mean of independent values [n] with an interval that allows for skewness.

    Log ratios are skewed (a few terrible samples, many good ones), and Student's interval then covers too rarely: the
    statistic is transformed by Hall's monotone cubic (Hall 1992, "On the removal of skewness by transformation"),
    which removes the first-order error, before the t quantiles are read off. Without skewness it is Student's interval.

    Raises:
        ConfigError: a value is missing (NaN) or there are none.
    """
    values = values.double().flatten()
    n = values.numel()
    if n == 0 or bool(values.isnan().any()):
        raise ConfigError(f"a mean needs values that are numbers, not {n} values of which some are NaN")
    middle = float(values.mean())
    if n == 1 or not math.isfinite(middle):
        return Estimate(middle, -math.inf, math.inf, n)
    deviation = float(values.std())
    if deviation <= 1e-14 * max(1.0, abs(middle)):
        return Estimate(middle, middle, middle, n)
    error = deviation / math.sqrt(n)
    skewness = float(((values - middle) / deviation).pow(3).mean()) / math.sqrt(n)
    quantile = float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2))
    high = middle - error * _inverse_cubic(-quantile, skewness)
    low = middle - error * _inverse_cubic(quantile, skewness)
    return Estimate(middle, low, high, n)


def _inverse_cubic(x: float, skewness: float) -> float:
    """Solve T + γT²/3 + γ²T³/27 + γ/6 = x for T, with γ the skewness over √n."""
    if abs(skewness) < 1e-9:
        return x
    inner = 1.0 + skewness * (x - skewness / 6.0)
    return 3.0 * (math.copysign(abs(inner) ** (1 / 3), inner) - 1.0) / skewness


def student(values: Sequence[float]) -> Estimate:
    """The mean of a few independent values with Student's symmetric interval: what "mean ± 95 %" over seeds means.

    Raises:
        ConfigError: a value is missing (NaN) or there are none.
    """
    n = len(values)
    if n == 0 or any(math.isnan(value) for value in values):
        raise ConfigError(f"a mean needs values that are numbers, not {n} values of which some are NaN")
    middle = math.fsum(values) / n if all(map(math.isfinite, values)) else sum(values)
    if n == 1 or not math.isfinite(middle):
        return Estimate(middle, -math.inf, math.inf, n)
    half = float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2)) * statistics.stdev(values) / math.sqrt(n)
    return Estimate(middle, middle - half, middle + half, n)


def difference(a: Estimate, b: Estimate) -> Estimate:
    """a − b for independent estimates: half-widths add in quadrature, each side for itself."""
    value = a.value - b.value
    if not math.isfinite(value):
        return Estimate(value, -math.inf, math.inf, min(a.n, b.n))
    low = value - math.hypot(a.value - a.low, b.high - b.value)
    high = value + math.hypot(a.high - a.value, b.value - b.low)
    return Estimate(value, low, high, min(a.n, b.n))


def log_of_mean(log_values: Tensor) -> Estimate:
    """log of the mean of exp(log_values) [n], interval by the delta method: for log Z from many Ẑ."""
    log_values = log_values.double().flatten()
    top = float(log_values.max())
    if not math.isfinite(top):
        return Estimate(top, -math.inf, top, log_values.numel())
    linear = mean((log_values - top).exp())
    half = linear.half_width / linear.value
    value = top + math.log(linear.value)
    return Estimate(value, value - half, value + half, linear.n)


def midpoint(lower: Estimate, upper: Estimate) -> Estimate:
    """The middle of a sandwich, with the whole sandwich and its errors as the interval."""
    value = (lower.value + upper.value) / 2
    return Estimate(value, min(lower.low, value), max(upper.high, value), min(lower.n, upper.n))
