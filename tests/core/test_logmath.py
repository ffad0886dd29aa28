"""Truncated weights: no draw stands for more than its part, the largest are lowered to one bound, the rest is left."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twistlm.core.logmath import log_mean_exp, normalise, truncated

LOG_WEIGHTS = st.lists(st.one_of(st.floats(-700.0, 700.0), st.just(-torch.inf)), min_size=1, max_size=40)


@given(LOG_WEIGHTS, st.floats(0.1, 10.0))
def test_no_weight_is_more_than_its_part_nor_lowered_more_than_has_to_be(values: list[float], parts: float) -> None:
    log_w = torch.tensor(values, dtype=torch.float64)
    found, count = truncated(log_w, parts), int(log_w.isfinite().sum())
    part = 1.0 / min(parts, math.sqrt(max(count, 1)))
    lowered = found < log_w
    assert not found.isnan().any()
    if float(normalise(log_w).max()) <= part:
        torch.testing.assert_close(found, log_w)
        return
    assert float(normalise(found).max()) == pytest.approx(part)
    bound = found[lowered].unique()
    assert bound.numel() == 1
    torch.testing.assert_close(found, log_w.clamp_max(float(bound)))


def test_rows_are_truncated_each_by_itself() -> None:
    rows = torch.tensor([[0.0, 0.0, 0.0, 9.0], [9.0, -torch.inf, 0.0, -torch.inf]], dtype=torch.float64)
    # Of four at most the half, which is as much as the other three; of two 1/√2 of the sum.
    expected = [[0.0, 0.0, 0.0, math.log(3)], [-math.log(math.sqrt(2) - 1), -torch.inf, 0.0, -torch.inf]]
    torch.testing.assert_close(truncated(rows, 16.0), torch.tensor(expected, dtype=torch.float64))


def test_the_bias_vanishes_as_draws_grow() -> None:
    """Of log-normal weights, whose mean is known."""
    generator, found = torch.Generator().manual_seed(0), []
    for count in (30, 300, 3000):
        log_w = torch.randn(2000, count, generator=generator, dtype=torch.float64) - 0.5
        found.append(1.0 - float(log_mean_exp(truncated(log_w, 16.0)).exp().mean()))
    assert found[0] > 0.01 > abs(found[1])
    assert abs(found[2]) < 0.003
