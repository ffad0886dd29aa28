"""The one way that a test compares a Monte Carlo average with the truth."""

import math

import torch
from torch import Tensor


def assert_mean(values: Tensor, truth: float, *, side: str = "equal", max_z: float = 4.0) -> None:
    """Assert that independent `values` [n] have the given mean, by a z-score; seeds are fixed, so this never flakes.

    Args:
        values: at least 30 independent draws.
        truth: the exact mean (or the bound, for a side).
        side: "equal"; "below" if the mean must be at most `truth`; "above" if at least.
        max_z: standard errors allowed; 4 errs once in 16,000 seeds.

    Raises:
        AssertionError: the mean is too far away, or the values are too few or not finite to tell.
    """
    assert values.numel() >= 30, f"{values.numel()} values cannot support a z-score"
    values = values.double()
    assert values.isfinite().all(), "a value is not finite"
    mean, error = float(values.mean()), float(values.std() / math.sqrt(values.numel()))
    z = (mean - truth) / max(error, 1e-12 * max(1.0, abs(truth)))
    ok = {"equal": abs(z) <= max_z, "below": z <= max_z, "above": z >= -max_z}[side]
    assert ok, f"mean {mean:.6g} ± {error:.2g} is {z:+.1f} standard errors from {truth:.6g}, expected {side}"
    assert torch.isfinite(torch.tensor(z))
