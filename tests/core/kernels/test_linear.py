"""Products with a fixed matrix, in all precisions and of any number of rows."""

import pytest
import torch
from torch.nn import functional

from twistlm.core.kernels.linear import PackedProduct, compiled_rows, skinny


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_rows_in_any_shape(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((40, 24), (40,)))
    product, tolerance = PackedProduct(weight, bias), 1e-5 if dtype == torch.float32 else 0.1
    for shape in [(0,), (1,), (), (97,), (97, 1), (97, 3), (130,)]:
        x = torch.randn(*shape, 24, generator=generator).to(dtype)
        made = product(x)
        assert made.shape == (*shape, 40)
        assert made.is_contiguous()
        assert torch.allclose(
            made.double(), functional.linear(x.double(), weight.double(), bias.double()), atol=tolerance
        )


def test_the_sizes_that_are_compiled_are_few_and_near() -> None:
    sizes = [compiled_rows(count) for count in range(1, 1025)]
    assert all(count <= size <= count * 17 / 16 for count, size in enumerate(sizes, 1))
    assert [compiled_rows(size) for size in sizes] == sizes
    assert len({size for size in sizes if 256 < size <= 512}) == 16


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
