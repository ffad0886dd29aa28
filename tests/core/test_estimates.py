"""Estimates as text: an interval is never shown without a width."""

import math

import pytest

from twistlm.core.estimates import Estimate
from twistlm.report.sweep_tables import plain


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [
        (-3.1234, 0.02, "-3.123 [-3.143, -3.103]"),
        (-3.1234, 2e-4, "-3.1234 [-3.1236, -3.1232]"),
        # p(toxic) of ordinary texts.
        (3e-6, 1e-6, "0.000003 [0.000002, 0.000004]"),
    ],
)
def test_as_many_decimals_as_keep_the_ends_apart(value: float, half: float, text: str) -> None:
    assert str(Estimate(value, value - half, value + half, 9)) == text


def test_no_half_width_is_shown_as_zero() -> None:
    assert plain(Estimate(0.314, 0.314 - 0.003, 0.314 + 0.003, 5), 2) == "0.314 ± 0.003"
    assert plain(Estimate(0.314, 0.1, 0.528, 5), 2) == "0.31 ± 0.21"
    assert plain(Estimate(0.314, 0.1, math.inf, 5), 2) == "≥ 0.10"
