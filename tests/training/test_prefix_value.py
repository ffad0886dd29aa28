"""The fit of a prefix's value: it finds what is there, and nothing where nothing is known."""

import pytest
import torch

from twistlm.training.prefix_value import Words, fit, fit_mean
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


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_the_mean_of_log_phi(seed: int) -> None:
    told, x, log_V, log_phi = draws(4000, seed)
    # Two targets whose texts are worth e^3 times as much; some texts come from elsewhere and weigh accordingly.
    log_phi[2000:] += 3.0
    log_ratio = 0.5 * told[:, 0]
    groups = [torch.arange(2000), torch.arange(2000, 4000)]
    found = fit_mean(torch.cat([told, x], 1), log_phi, log_ratio, groups)
    noise = 0.3**2 / float(log_V.var() + 0.3**2)
    assert found.gain == pytest.approx(1 - noise, abs=0.05)
    error = torch.cat([told, x], 1) @ found.numbers - log_V
    assert float((error - error.mean()).std()) < 0.1 * float(log_V.std())


@pytest.mark.parametrize("seed", range(3))
def test_where_nothing_is_known_it_is_the_mean(seed: int) -> None:
    told, x, _, _ = draws(1000, seed)
    log_phi = torch.randn(1000, generator=torch.Generator().manual_seed(99 + seed), dtype=torch.float64)
    features, even = torch.cat([told, x], 1), torch.zeros(1000, dtype=torch.float64)
    found = fit_mean(features, log_phi, even, [torch.arange(1000)])
    assert found.gain <= 0.03
    few = fit_mean(features[:8], log_phi[:8], even[:8], [torch.arange(8)])
    assert few.gain == 0.0
    assert not few.numbers.any()


def test_models_without_an_output_matrix_have_no_words() -> None:
    words = Words(object())  # type: ignore[arg-type]
    tokens, nodes = torch.tensor([1, 2]), torch.tensor([3, 4])
    assert words.beside(tokens, nodes) == []
    assert torch.equal(
        words.value(torch.zeros(2, 3).double(), tokens, nodes, torch.ones(3).double()), torch.zeros(2).double()
    )
