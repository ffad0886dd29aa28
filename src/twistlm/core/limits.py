"""Confidence limits of a mean that never collapse to a point, for values with a known bound.

What a sample cannot know is what it has not seen, and a known bound says how much that can matter. Gaffke's limit adds
the bound to the n values and asks what the mean may be if their n + 1 shares are unknown, all shares being equally
likely: the upper limit is the (1 − α) quantile of Σ W_i x_i, with W uniform on the simplex (Gaffke 2005, "Three test
statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative variable"; Learned-Miller and Thomas
2019, arXiv 1905.06208). For values that are 0 or 1 it is Clopper and Pearson's. That it covers for every distribution
is proved there for special cases and conjectured in general, without a known counterexample; `make coverage` measures
it on ours.

Σ W_i x_i ≥ t where Σ E_i (x_i − t) ≥ 0 with E_i exponential and independent: a tail probability whose saddlepoint
approximation (Barndorff-Nielsen 1986; Lugannani and Rice 1980) has an error far below what is printed.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betaincinv, ndtri, stdtrit

Array = NDArray[np.float64]

# Of log (u − max x) over the range of x: from all but the largest value to all but the mean.
NEAREST = -80.0


def upper_limit(values: Array, most: float, alpha: float) -> float:
    """What the mean of independent values [n], all at most `most`, exceeds with probability α at most."""
    if not math.isfinite(most):
        return most
    # Rounding may have left a value above its bound.
    x, times = np.unique(np.append(np.minimum(values, most), most), return_counts=True)
    counts: Array = times.astype(np.float64)
    span = float(x[-1] - x[0])
    if span == 0.0:
        return float(most)
    if len(x) == 2:
        return float(x[0] + span * betaincinv(counts[1], counts[0], 1.0 - alpha))
    return most - span * _below_most((x[-1] - x) / span, counts, alpha)


def lower_limit(values: Array, least: float, alpha: float) -> float:
    """What the mean of independent values [n], all at least `least`, falls below with probability α at most."""
    return -upper_limit(-values, -least, alpha)


def log_upper_limit(log_values: Array, most: float, alpha: float) -> float:
    """log of the upper limit of the mean of exp(log_values) [n], all of which are at most exp(most)."""
    if math.isinf(most):
        return most
    return most + math.log(upper_limit(np.exp(log_values - most), 1.0, alpha))


def log_lower_limit(log_values: Array, alpha: float) -> float:
    """log of the lower limit of the mean of exp(log_values) [n], which are not negative: nothing else is assumed."""
    top = float(log_values.max())
    if math.isinf(top):
        return -math.inf if top < 0 else math.inf
    return top + math.log(lower_limit(np.exp(log_values - top), 0.0, alpha))


def _below_most(distance: Array, counts: Array, alpha: float) -> float:
    """How far the limit is below the largest value, of values that are so far below it, between 0 and 1.

    With u = max x + e^v, the saddlepoint equation Σ (x_i − t) / (1 − s (x_i − t)) = 0 is solved by s = mean 1 / (u − x)
    and t = u − 1/s, which leaves one unknown.
    """
    total, wanted = counts.sum(), -float(ndtri(alpha))

    def solved(v: float) -> tuple[Array, float]:
        away = distance + math.exp(v)
        return away, float((counts / away).sum() / total)

    def excess(v: float) -> float:
        away, s = solved(v)
        scaled = s * away
        r = math.sqrt(max(2.0 * float((counts * np.log(scaled)).sum()), 1e-300))
        q = math.sqrt(float((counts * (1.0 / scaled - 1.0) ** 2).sum()))
        return r + math.log(q / r) / r - wanted

    # At the far end r is at most a quarter, which is beyond any level of interest.
    v = brentq(excess, NEAREST, math.log(2.0 * math.sqrt(total)), xtol=1e-9)
    _, s = solved(v)
    return 1.0 / s - math.exp(v)


def hall_limit(x: Array, alpha: float) -> float:
    """Hall's upper limit of a mean, which trusts the sample; without skewness Student's (Hall 1992)."""
    n, middle, deviation = len(x), float(x.mean()), float(x.std(ddof=1))
    if deviation <= 1e-14 * max(1.0, abs(middle)):
        return middle
    skewness = float((((x - middle) / deviation) ** 3).mean()) / math.sqrt(n)
    return middle - deviation / math.sqrt(n) * _inverse_cubic(float(stdtrit(n - 1, alpha)), skewness)


def _inverse_cubic(x: float, skewness: float) -> float:
    """Solve T + γT²/3 + γ²T³/27 + γ/6 = x for T, with γ the skewness over √n."""
    if abs(skewness) < 1e-9:
        return x
    inner = 1.0 + skewness * (x - skewness / 6.0)
    return 3.0 * (math.copysign(abs(inner) ** (1 / 3), inner) - 1.0) / skewness
