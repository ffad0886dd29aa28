"""Laws of the resampling schemes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twistlm.core.registry import available
from twistlm.core.rng import Rng
from twistlm.sampling.resampling import Resampler, multinomial, systematic
from twistlm.testing import enumerate_paths

RESAMPLERS = [entry.value for entry in available("resampler").values()]
WEIGHTS = torch.tensor([[0.5, 0.2, 0.0, 0.3]], dtype=torch.float64)


def expected_offspring(scheme: Resampler, weights: torch.Tensor, retained: bool = False) -> torch.Tensor:
    total = torch.zeros(weights.shape[1], dtype=torch.float64)
    for p, ancestors in enumerate_paths(lambda rng: scheme(rng, weights, retained)):
        total += p * torch.bincount(ancestors[0], minlength=weights.shape[1]).double()
    return total


@pytest.mark.parametrize("scheme", RESAMPLERS, ids=lambda r: r.name)
def test_expected_offspring_is_n_times_the_weight(scheme: Resampler) -> None:
    torch.testing.assert_close(expected_offspring(scheme, WEIGHTS), 4 * WEIGHTS[0], rtol=0, atol=1e-9)


def test_a_biased_scheme_is_caught() -> None:
    # Kept to prove that the law above bites: always copies the heaviest particle.
    idiotic = Resampler("idiotic", lambda rng, w, r: w.argmax(-1, keepdim=True).expand_as(w), False)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(expected_offspring(idiotic, WEIGHTS), 4 * WEIGHTS[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("scheme", RESAMPLERS, ids=lambda r: r.name)
def test_conditional_form_is_the_law_given_slot_zero(scheme: Resampler) -> None:
    # Shift the slots of the unconditional scheme by a uniform amount and condition on "slot 0 descends from 0": the
    # law of the multiset of ancestors must be that of the conditional form.
    weights = torch.tensor([[0.35, 0.25, 0.4]], dtype=torch.float64)
    conditioned: dict[tuple[int, ...], float] = {}
    for p, ancestors in enumerate_paths(lambda rng: scheme(rng, weights, False)):
        for shift in range(3):
            shifted = ancestors[0].roll(-shift)
            if shifted[0] == 0:
                key = tuple(sorted(shifted.tolist()))
                conditioned[key] = conditioned.get(key, 0.0) + p / 3 / 0.35
    drawn: dict[tuple[int, ...], float] = {}
    for p, ancestors in enumerate_paths(lambda rng: scheme(rng, weights, True)):
        assert ancestors[0, 0] == 0
        key = tuple(sorted(ancestors[0].tolist()))
        drawn[key] = drawn.get(key, 0.0) + p
    assert sum(conditioned.values()) == pytest.approx(1.0, abs=1e-9)
    assert drawn == pytest.approx(conditioned, abs=1e-9)


weights_strategy = st.lists(st.floats(0, 1), min_size=1, max_size=12).filter(lambda w: sum(w) > 1e-3)


@settings(max_examples=60, deadline=None)
@given(weights_strategy, st.integers(0, 2**31))
def test_counts_of_systematic_are_rounded_expectations(weights: list[float], seed: int) -> None:
    w = torch.tensor([weights], dtype=torch.float64)
    w = w / w.sum()
    counts = torch.bincount(systematic(Rng(seed), w)[0], minlength=len(weights))
    assert ((counts - len(weights) * w[0]).abs() < 1 + 1e-9).all()


@settings(max_examples=60, deadline=None)
@given(weights_strategy, st.integers(0, 2**31), st.sampled_from(RESAMPLERS), st.booleans())
def test_zero_weights_are_never_chosen(weights: list[float], seed: int, scheme: Resampler, retained: bool) -> None:
    w = torch.tensor([weights], dtype=torch.float64)
    w = w / w.sum()
    retained = retained and bool(w[0, 0] > 0)
    ancestors = scheme(Rng(seed), w, retained)
    assert ancestors.shape == w.shape
    assert (w[0, ancestors[0]] > 0).all()
    assert not retained or ancestors[0, 0] == 0


@pytest.mark.parametrize("scheme", RESAMPLERS, ids=lambda r: r.name)
def test_a_retained_particle_of_vanishing_weight_keeps_its_slot(scheme: Resampler) -> None:
    w = torch.tensor([[2.5e-99, 1.0]], dtype=torch.float64)
    assert scheme(Rng(0), w, True)[0].tolist() == [0, 1]


def test_runs_are_independent() -> None:
    w = torch.tensor([[0.5, 0.5], [1.0, 0.0]], dtype=torch.float64)
    assert (multinomial(Rng(0), w)[1] == 0).all()
