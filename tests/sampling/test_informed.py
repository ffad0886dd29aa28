"""SMC that listens to the potential: exactly unbiased, whatever the numbers, and what it is for."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from tests.cases import Case, TablePotential, make_case
from twistlm.core.errors import PotentialError
from twistlm.core.rng import Rng
from twistlm.models.base import Prompts
from twistlm.potentials.base import BasePotential
from twistlm.potentials.prefixes import prefix_scores, scores_prefixes, softened
from twistlm.sampling import smc
from twistlm.sampling.sampler import Sampler
from twistlm.testing import enumerate_paths
from twistlm.twists.informed import Informed


@dataclass(frozen=True)
class Scoring(BasePotential):
    """φ of a table, with an opinion of prefixes that is not its own."""

    inner: TablePotential
    scores_prefixes = True

    def score_prefixes(self, prompts: Prompts, tokens: Tensor, conditions: Tensor | None = None) -> Tensor:
        return (tokens.double() * torch.tensor([0.3, -1.1, 0.7])[: tokens.shape[1]]).sum(-1)

    def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        return self.inner.log_phi(prompts, tokens)


NUMBERS = torch.tensor([[0.4, 0.6, 0.9], [-0.2, 1.3, 0.5]], dtype=torch.float64)


def informed_sampler(case: Case, threshold: float | None, steps: tuple[int, ...]) -> Sampler:
    informed = Informed(steps, NUMBERS[: len(steps)])
    return Sampler(case.twisted, Scoring(case.potential), case.num_steps, ess_threshold=threshold, informed=informed)


@pytest.mark.parametrize("threshold", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("eos", ["ignore", "absorb"])
def test_z_hat_is_exactly_unbiased(threshold: float, eos: str) -> None:
    case = make_case(vocab_size=2, num_steps=2, eos=eos)
    sampler = informed_sampler(case, threshold, (1,))
    paths = enumerate_paths(lambda rng: sampler.smc(rng, [case.at], 2).log_Z_hat.exp())
    mean = sum(p * float(z) for p, z in paths)
    assert mean == pytest.approx(float(case.truth.log_Z.exp()), abs=1e-12)


@pytest.mark.parametrize("threshold", [0.95, 1.0])
def test_conditional_smc_is_exactly_unbiased(threshold: float, tiny_case: Case) -> None:
    truth, total = tiny_case.truth, 0.0
    sampler = informed_sampler(tiny_case, threshold, (1,))
    for tokens, log_sigma in zip(truth.tokens, truth.log_sigma, strict=True):
        paths = enumerate_paths(
            lambda rng, tokens=tokens: sampler.smc(rng, [tiny_case.at], 2, retained=tokens.unsqueeze(0))
        )
        total += float(log_sigma.exp()) * sum(p * float((-r.log_Z_hat).exp()) for p, r in paths)
    assert total == pytest.approx(float((-truth.log_Z).exp()), abs=1e-11)


def test_the_weights_are_those_of_the_definition(case: Case) -> None:
    sampler = informed_sampler(case, 1.0, (1, 2))
    result = sampler.smc(Rng(3), [case.at] * 4, 8)
    particles, scoring = result.particles, Scoring(case.potential)
    assert any(bool(info.resampled.any()) for info in result.infos)
    # From the paths of the final particles, each increment by hand.
    moves = smc.increments(result)
    samples = sampler.samples_of(result, [case.at] * 4)
    densities = case.twisted.densities(samples, sampler.proposal)
    own = case.twisted.carried(densities.log_psi, samples.mask)
    gone = (samples.log_q - samples.log_p).cumsum(-1)
    before = torch.zeros(len(samples), dtype=torch.float64)
    for t in range(1, case.num_steps + 1):
        if t == case.num_steps:
            now = samples.log_phi
        else:
            a, c, b = NUMBERS[t - 1]
            score = prefix_scores(scoring, samples.prompts, samples.tokens[:, :t])
            now = a * gone[:, t - 1] + c * own[:, t - 1] + b * score
        expected = now - before + samples.log_p[:, t - 1] - samples.log_q[:, t - 1]
        torch.testing.assert_close(moves[:, t - 1], expected, rtol=0, atol=1e-9)
        before = now
    assert particles.log_w.isfinite().all()


def test_without_steps_nothing_is_resampled_and_it_is_importance_sampling(case: Case) -> None:
    sampler = informed_sampler(case, 1.0, ())
    sampler = replace(sampler, ess_threshold=0.9)
    result = sampler.smc(Rng(0), [case.at] * 5, 6)
    plain = replace(sampler, ess_threshold=0.0).smc(Rng(0), [case.at] * 5, 6)
    assert not any(bool(info.resampled.any()) for info in result.infos)
    torch.testing.assert_close(result.log_Z_hat, plain.log_Z_hat, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("asked", "num_particles", "resamples"), [(None, 15, False), (None, 16, True), (0.5, 15, True), (0.0, 16, False)]
)
def test_few_particles_are_resampled_only_if_that_is_asked_for(
    asked: float | None, num_particles: int, resamples: bool, case: Case
) -> None:
    # Weights that differ by much.
    steep = Informed((1, 2), torch.tensor([[0, 0, 8.0]] * 2, dtype=torch.float64))
    sampler = replace(informed_sampler(case, asked, ()), informed=steep)
    result = sampler.smc(Rng(0), [case.at] * 50, num_particles)
    assert any(bool(info.resampled.any()) for info in result.infos) is resamples


def test_by_the_twist_alone_few_particles_are_resampled_too() -> None:
    assert smc.threshold(None, 2, informed=False) == 0.5


def test_exact_scores_make_smc_exact_but_for_the_last_step() -> None:
    case = make_case()
    truth = case.truth

    @dataclass(frozen=True)
    class Knowing(Scoring):
        def score_prefixes(self, prompts: Prompts, tokens: Tensor, conditions: Tensor | None = None) -> Tensor:
            known = []
            for row in tokens:
                same = (truth.tokens[:, : len(row)] == row).all(-1)
                known.append(
                    torch.logsumexp((truth.log_p + truth.log_phi)[same], 0) - torch.logsumexp(truth.log_p[same], 0)
                )
            return torch.stack(known)

    informed = Informed((1, 2), torch.tensor([[0, 0, 1.0]] * 2, dtype=torch.float64))
    spreads = {}
    for name, numbers in (("twist", None), ("informed", informed)):
        sampler = Sampler(case.twisted, Knowing(case.potential), 3, ess_threshold=1.0, informed=numbers)
        spreads[name] = float(sampler.smc(Rng(1), [case.at] * 3000, 8).log_Z_hat.std())
    assert spreads["informed"] < 0.9 * spreads["twist"], spreads


def test_scores_are_finite_and_asked_once_for_each_prefix() -> None:
    asked: list[int] = []

    @dataclass(frozen=True)
    class Counting(BasePotential):
        scores_prefixes = True

        def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
            asked.append(len(tokens))
            return torch.where(tokens[:, 0] == 0, -torch.inf, tokens[:, 0].double())

    tokens = torch.tensor([[0, 1], [2, 2], [0, 1], [2, 2], [1, 0]])
    found = prefix_scores(Counting(), [torch.tensor([4])] * 5, tokens)
    assert asked == [3]
    assert found.isfinite().all()
    assert found[0] == found[2] < -100
    assert found[1] == 2
    assert found[4] == 1


def test_softened_is_increasing() -> None:
    values = torch.tensor([-torch.inf, -9000.0, -700.0, -41.0, -40.0, 0.0, 39.0, 55.0, torch.inf], dtype=torch.float64)
    assert (softened(values).diff() > 0).all()
    assert softened(values).isfinite().all()


def test_a_potential_that_cannot_tell_is_not_asked(case: Case) -> None:
    assert not scores_prefixes(case.potential)
    assert not scores_prefixes(None)
    with pytest.raises(PotentialError, match="not finished"):
        prefix_scores(case.potential, [case.prompt], torch.tensor([[1]]))
