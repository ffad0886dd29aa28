"""Limits of bounded means against Clopper and Pearson, against simulated shares, and for what they must never be."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from twistlm.core.limits import log_lower_limit, log_upper_limit, lower_limit, upper_limit


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (0, 256), (1, 10), (7, 40), (40, 40), (3, 4096)])
@pytest.mark.parametrize("alpha", [0.025, 0.0005])
def test_of_indicators_they_are_clopper_and_pearsons(hits: int, n: int, alpha: float) -> None:
    values = np.repeat([0.0, 1.0], [n - hits, hits])
    expected = stats.binomtest(hits, n).proportion_ci(1 - 2 * alpha, "exact")
    assert upper_limit(values, 1.0, alpha) == pytest.approx(expected.high, abs=1e-12)
    assert lower_limit(values, 0.0, alpha) == pytest.approx(expected.low, abs=1e-12)


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (0, 256), (2, 30), (100, 200)])
def test_the_saddlepoint_is_as_good_as_the_beta_distribution(hits: int, n: int) -> None:
    """Values that are all but two-valued take the approximation: half a percent of the width at most."""
    values = np.repeat([0.0, 1.0], [n - hits, hits]) + np.linspace(0.0, 1e-9, n)
    exact = stats.beta.ppf(0.975, hits + 1, n - hits)
    assert upper_limit(values, 1.0 + 1e-8, 0.025) == pytest.approx(exact, abs=6e-3 * (exact - hits / n))


@pytest.mark.parametrize("name", ["uniform", "skewed", "tiny", "few"])
def test_they_are_quantiles_over_all_shares(name: str) -> None:
    rng = np.random.default_rng(3)
    values, most = {
        "uniform": (rng.random(40), 1.0), "skewed": (np.exp(rng.normal(size=100)), 50.0),
        "tiny": (1e-7 * rng.random(200), 1.0), "few": (rng.random(4), 1.0),
    }[name]  # fmt: skip
    shares = rng.dirichlet(np.ones(len(values) + 1), 100_000)
    simulated = shares @ np.append(values, most)
    for alpha in (0.025, 0.005):
        beyond = float((simulated > upper_limit(values, most, alpha)).mean())
        # Four standard errors of the simulation, and the approximation's own.
        assert beyond == pytest.approx(alpha, abs=4 * math.sqrt(alpha / 100_000) + 0.03 * alpha)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=50),
    st.sampled_from([0.025, 0.0125, 0.0005]),
)
def test_they_hold_the_mean_and_are_no_point(values: list[float], alpha: float) -> None:
    x = np.array(values)
    low, high = lower_limit(x, 0.0, alpha), upper_limit(x, 1.0, alpha)
    assert 0.0 <= low <= x.mean() + 1e-12
    assert x.mean() - 1e-12 <= high <= 1.0
    # What n values cannot show is at most 1 − α^(1/n) of all.
    unseen = 1 - alpha ** (1 / len(x))
    assert high >= x.mean() + 0.9 * unseen * (1 - x.max()) - 1e-9
    assert high - low > 0.5 * unseen
    assert upper_limit(-x, 0.0, alpha) == pytest.approx(-low)


def test_in_the_log_domain_nothing_underflows() -> None:
    log_values = np.linspace(-2010.0, -2000.0, 50)
    assert log_lower_limit(log_values, 0.025) == pytest.approx(log_lower_limit(log_values + 2000, 0.025) - 2000)
    assert log_upper_limit(log_values, 0.0, 0.025) == pytest.approx(math.log(1 - 0.025 ** (1 / 50)), rel=1e-9)
    assert log_lower_limit(np.array([-math.inf, -math.inf]), 0.025) == -math.inf
    assert log_upper_limit(np.array([-math.inf, -math.inf]), 0.0, 0.025) < 0
    assert log_upper_limit(log_values, math.inf, 0.025) == math.inf
