"""The fit of what weighs beside a twist, against exact sums."""

import pytest
import torch

from tests.cases import Case
from twistlm.core.errors import ConfigError
from twistlm.sampling.proposals import twist_induced
from twistlm.twists.informed import ALONE, Informed, Prefixes, fit, objective


def every_prefix(case: Case, step: int, scores: torch.Tensor | None = None) -> Prefixes:
    """All sequences, weighed by what they are worth: no sampling error. `scores` [S] of their prefixes."""
    truth = case.truth
    there = truth.log_p.isfinite()
    densities = case.twisted.densities(truth.samples(case.twisted), twist_induced)
    log_p, log_q = (x[:, :step].sum(-1) for x in (densities.log_p, densities.log_q))
    score = torch.zeros_like(truth.log_p) if scores is None else scores
    psi = case.twisted.carried(densities.log_psi, truth.samples(case.twisted).mask)[:, step - 1]
    features = torch.stack([log_q - log_p, psi, score], -1)
    # Drawn from p₀ restricted to nothing: each sequence once, with its probability as its ratio.
    return Prefixes(
        features[there], truth.log_p[there], (truth.log_p + truth.log_phi)[there], [torch.arange(int(there.sum()))]
    )


def value_of(case: Case, step: int) -> torch.Tensor:
    """log E_p₀[φ | s_1:t] of the prefix of every sequence [S]."""
    truth = case.truth
    total = torch.full_like(truth.log_p, -torch.inf)
    for s, tokens in enumerate(truth.tokens):
        same = (truth.tokens[:, :step] == tokens[:step]).all(-1) & truth.log_p.isfinite()
        total[s] = torch.logsumexp((truth.log_p + truth.log_phi)[same], 0) - torch.logsumexp(truth.log_p[same], 0)
    return total


def divergence(case: Case, step: int, log_psi: torch.Tensor) -> float:
    """KL(σ(s_1:t) ‖ π_t), by its definition."""
    truth = case.truth
    there = truth.log_p.isfinite()
    log_pi = (truth.log_p + log_psi)[there]
    log_sigma = truth.log_sigma[there]
    keys = [tuple(tokens[:step].tolist()) for tokens in truth.tokens[there]]
    total = 0.0
    for key in dict.fromkeys(keys):
        same = torch.tensor([other == key for other in keys])
        sigma = torch.logsumexp(log_sigma[same], 0)
        pi = torch.logsumexp(log_pi[same], 0) - torch.logsumexp(log_pi, 0)
        total += float(sigma.exp() * (sigma - pi))
    return total


def test_the_objective_is_the_divergence_up_to_a_constant(case: Case) -> None:
    prefixes = every_prefix(case, 2, value_of(case, 2).nan_to_num(0.0))
    there = case.truth.log_p.isfinite()
    numbers = [torch.tensor(each, dtype=torch.float64) for each in ([1, 0, 0], [0, 1, 0], [0, 0, 1], [0.3, -0.4, 0.7])]
    found = [objective(prefixes, each) for each in numbers]
    full = torch.zeros(len(there), 3, dtype=torch.float64)
    full[there] = prefixes.features
    exact = [divergence(case, 2, full @ each) for each in numbers]
    gaps = torch.tensor(found, dtype=torch.float64) - torch.tensor(exact, dtype=torch.float64)
    torch.testing.assert_close(gaps, gaps[:1].expand_as(gaps), rtol=0, atol=1e-9)


def test_a_score_that_is_the_exact_value_is_all_that_counts(case: Case) -> None:
    # Copies, so that each of four parts has every sequence and the effective number is large.
    one = every_prefix(case, 2, value_of(case, 2).nan_to_num(0.0))
    copies = 400
    many = Prefixes(
        one.features.repeat_interleave(copies, 0),
        one.log_ratio.repeat_interleave(copies),
        one.log_w.repeat_interleave(copies),
        [torch.arange(copies * len(one.log_w))],
    )
    numbers, gain = fit(many)
    assert gain > 0.02
    assert objective(many, numbers) == pytest.approx(objective(many, torch.tensor([0.0, 0.0, 1.0]).double()), abs=2e-3)


def test_what_tells_nothing_leaves_the_proposal_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    features[:, 0] = 0
    zeros = torch.zeros(4000, dtype=torch.float64)
    log_w = torch.randn(4000, generator=generator, dtype=torch.float64)
    numbers, gain = fit(Prefixes(features, zeros, log_w, [torch.arange(4000)]))
    assert gain == 0
    assert numbers.equal(ALONE)


def test_too_few_effective_draws_decide_nothing() -> None:
    features = torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_w = torch.full((500,), -torch.inf, dtype=torch.float64)
    log_w[:10] = 0
    numbers, gain = fit(Prefixes(features, torch.zeros(500).double(), log_w, [torch.arange(500)]))
    assert gain == 0
    assert numbers.equal(ALONE)


def test_a_target_without_any_weight_is_left_out() -> None:
    generator = torch.Generator().manual_seed(1)
    score = torch.randn(2000, generator=generator, dtype=torch.float64)
    features = torch.stack([torch.zeros_like(score), torch.zeros_like(score), score], -1)
    groups = [torch.arange(1000), torch.arange(1000, 2000)]
    log_w = score.clone()
    log_w[1000:] = -torch.inf
    numbers, gain = fit(Prefixes(features, torch.zeros_like(score), log_w, groups))
    assert gain > 0.1
    assert float(numbers[2]) == pytest.approx(1.0, abs=0.1)


def test_it_survives_a_file() -> None:
    informed = Informed((2, 5), torch.tensor([[1, 0.5, 0], [0.1, 0.2, 0.7]], dtype=torch.float64))
    again = Informed.from_dict(informed.as_dict())
    assert again.steps == informed.steps
    assert again.coefficients.equal(informed.coefficients)
    assert informed.at(2).equal(informed.coefficients[0])
    assert informed.at(3) is None
    none = Informed.from_dict({"steps": [], "coefficients": []})
    assert none.at(1) is None


@pytest.mark.parametrize(
    ("steps", "rows"), [((2, 1), 2), ((0,), 1), ((1, 1), 2), ((1,), 2)], ids=["order", "zero", "twice", "count"]
)
def test_numbers_that_make_no_sense_are_refused(steps: tuple[int, ...], rows: int) -> None:
    with pytest.raises(ConfigError, match=r"steps|numbers"):
        Informed(steps, torch.zeros(rows, 3, dtype=torch.float64))
    with pytest.raises(ConfigError, match="finite"):
        Informed((1,), torch.full((1, 3), torch.nan, dtype=torch.float64))
