"""log Σ p₀ψ and its gradient, against autograd written out in float64."""

import pytest
import torch

from twistlm.core.kernels import normaliser
from twistlm.core.kernels.linear import PackedProduct

ROWS, WIDTH, VOCAB = 23, 12, 700


def problem(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((ROWS, WIDTH), (VOCAB, WIDTH), (VOCAB,), (ROWS, VOCAB))
    inner, weight, bias, logits = (torch.randn(shape, generator=generator) for shape in shapes)
    # Rounded first, so that half precision has nothing to round but its results.
    return tuple(x.to(dtype).float() for x in (inner, 0.3 * weight, bias, 3 * logits))


def log_normaliser(
    parameters: list[torch.Tensor], scale: float, logits: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Of inner, weight and maybe a bias: written out where they are in float64, else multiplied in that precision."""
    inner, weight, *rest = parameters
    bias = rest[0] if rest else None
    if inner.dtype == torch.float64:
        log_psi = inner @ weight.T + (0.0 if bias is None else bias)
        return torch.logsumexp(torch.log_softmax(logits.double(), -1) + scale * log_psi, -1)
    product = PackedProduct(weight.to(dtype), None if bias is None else bias.to(dtype))
    return normaliser.of_product(inner, weight, bias, scale, product, lambda part: logits[part].to(dtype), 4)


@pytest.mark.parametrize("kept", [10**9, 5 * VOCAB], ids=["one segment", "five"])
@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_value_and_gradient(
    dtype: torch.dtype, tolerance: float, with_bias: bool, scale: float, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(normaliser, "KEPT", kept)
    inner, weight, bias, logits = problem(dtype)
    upstream = torch.linspace(-1.0, 2.0, ROWS)

    def gradients(precise: bool) -> list[torch.Tensor]:
        parameters = [
            x.double().clone().requires_grad_() if precise else x.clone().requires_grad_()
            for x in ((inner, weight, bias) if with_bias else (inner, weight))
        ]
        total = log_normaliser(parameters, scale, logits, dtype)
        (total * upstream).sum().backward()
        return [total.detach().double(), *[p.grad.double() for p in parameters if p.grad is not None]]

    for mine, truth in zip(gradients(False), gradients(True), strict=True):
        assert (mine - truth).norm() < tolerance * truth.norm()


def test_a_borrowed_matrix_gets_no_gradient() -> None:
    inner, weight, _, logits = problem(torch.float32)
    inner.requires_grad_()
    total = normaliser.of_product(inner, weight, None, 1.0, PackedProduct(weight), lambda part: logits[part], 8)
    total.sum().backward()
    assert weight.grad is None
    assert inner.grad is not None


def test_a_likely_token_leaves_more_than_rounding() -> None:
    """log ψ(y) − log Σ p₀ψ where q(y) is nearly one: each term's rounding is larger than their difference."""
    inner, weight, bias, logits = problem(torch.bfloat16)
    likely = torch.arange(ROWS)
    logits[likely, likely] = 18.0

    def gradients(precise: bool) -> list[torch.Tensor]:
        parameters = [(x.double() if precise else x).clone().requires_grad_() for x in (inner, weight, bias)]
        h, w, b = parameters
        total = log_normaliser(parameters, 1.0, logits, torch.bfloat16)
        ((h * w[likely]).sum(-1) + b[likely] - total).sum().backward()
        return [p.grad.double() for p in parameters if p.grad is not None]

    for mine, truth in zip(gradients(False), gradients(True), strict=True):
        assert (mine - truth).norm() < 2e-2 * truth.norm()


def test_small_factors_have_a_gradient_in_half_precision() -> None:
    """2e-6 for each row, as in a large batch: float16's least step is 6e-8, and the weight's gradient was 18 % off."""
    inner, weight, bias, logits = problem(torch.float16)
    found = []
    for dtype in (torch.float16, torch.float64):
        parameters = [x.to(torch.float64 if dtype == torch.float64 else x.dtype).requires_grad_() for x in
                      (inner.clone(), weight.clone(), bias.clone())]  # fmt: skip
        total = log_normaliser(parameters, 1.0, logits, dtype)
        (2e-6 * total).sum().backward()
        found.append([p.grad.double() for p in parameters if p.grad is not None])
    for mine, truth in zip(*found, strict=True):
        assert (mine - truth).norm() < 5e-3 * truth.norm()
