"""Products with a matrix in half precision, against float64."""

import torch

from twistlm.core.kernels.linear import skinny


def test_gradients_that_cancel_keep_their_digits() -> None:
    """What two uses send back sums to a thousandth of either: rounded to bfloat16, four times that would be lost."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(3000, 24, generator=generator).bfloat16()
    x = torch.randn(24, 3, generator=generator).requires_grad_()
    one = torch.randn(3000, 3, generator=generator)
    other = 1e-3 * torch.randn(3000, 3, generator=generator) - one
    made = skinny(matrix, x)
    assert torch.allclose(made, matrix.float() @ x, atol=0.2)
    ((made * one).sum() + (skinny(matrix, x) * other).sum()).backward()
    assert x.grad is not None
    truth = matrix.double().T @ (one.double() + other.double())
    assert (x.grad - truth).norm() < 1e-2 * truth.norm()
