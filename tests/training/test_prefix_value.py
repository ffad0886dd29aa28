"""The fit of a prefix's value: it finds what is there, and nothing where nothing is known."""

import pytest
import torch

from twistlm.training.prefix_value import Words, fit
from twistlm.twists.informed import Prefixes

NONE = torch.zeros(0, dtype=torch.float64)


def draws(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features of prefixes whose value is exp(0.5 log(q/p₀) + 0.8 g + x · u), and φ of one end of each."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    told, x, u = normal(count, 3) * 0.5, normal(count, 30), torch.cat([torch.tensor([0.9, -0.7]), torch.zeros(28)])
    log_V = told @ torch.tensor([0.5, 0.0, 0.8], dtype=torch.float64) + x @ u.double()
    # What comes after, with mean one.
    noise = normal(count) * 0.3 - 0.045
    return told, x, log_V, log_V + noise


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_the_value(seed: int) -> None:
    told, x, log_V, log_w = draws(4000, seed)
    groups = [torch.arange(2000), torch.arange(2000, 4000)]
    found = fit(Prefixes(torch.cat([told, x], 1), torch.zeros(4000, dtype=torch.float64), log_w, groups))
    assert found.gain > 0.3
    error = torch.cat([told, x], 1) @ found.numbers - log_V
    assert float((error - error.mean()).std()) < 0.35 * float(log_V.std())


@pytest.mark.parametrize("seed", range(3))
def test_where_nothing_is_known_it_is_the_proposal(seed: int) -> None:
    told, x, _, _ = draws(1000, seed)
    # Weights that have nothing to do with the features, of prefixes that were drawn by q = p₀.
    log_w = torch.randn(1000, generator=torch.Generator().manual_seed(99 + seed), dtype=torch.float64)
    told[:, 0] = 0.0
    prefixes = Prefixes(torch.cat([told, x], 1), torch.zeros(1000, dtype=torch.float64), log_w, [torch.arange(1000)])
    found = fit(prefixes)
    assert found.gain <= 0.03
    few = fit(Prefixes(prefixes.features[:8], NONE.new_zeros(8), log_w[:8], [torch.arange(8)]))
    assert few.gain == 0.0
    assert few.numbers[0] == 1.0
    assert not few.numbers[1:].any()


def test_models_without_an_output_matrix_have_no_words() -> None:
    words = Words(object())  # type: ignore[arg-type]
    tokens, nodes = torch.tensor([1, 2]), torch.tensor([3, 4])
    assert words.beside(tokens, nodes) == []
    assert torch.equal(
        words.value(torch.zeros(2, 3).double(), tokens, nodes, torch.ones(3).double()), torch.zeros(2).double()
    )
