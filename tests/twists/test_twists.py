"""Every registered twist, on every kind of path it is used in."""

import math

import pytest
import torch

from tests.architectures import VOCAB, tiny_lm
from tests.cases import TablePotential, cases, samples_of
from twistlm.core.errors import ConfigError
from twistlm.core.registry import available, lookup
from twistlm.core.rng import Rng
from twistlm.models.base import BaseLM
from twistlm.models.tabular import TabularLM
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.twisted import TwistedLM
from twistlm.testing import check_twist
from twistlm.twists.base import Twist
from twistlm.twists.sigmoid import probability

PROMPTS = [torch.tensor([5, 6, 7]), torch.tensor([9])]
NAMES = [name for name, entry in available("twist").items() if not entry.options.get("needs_conditions")]


def perturbed(name: str) -> TwistedLM:
    lm = tiny_lm("llama")
    twist: Twist = lookup("twist", name).value(lm)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in twist.module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return TwistedLM(lm, twist, "ignore")


def drawn(model: TwistedLM, num_particles: int = 6, **options):  # type: ignore[no-untyped-def]
    potential = TablePotential(torch.tensor([-1.0, -2.0, -0.5]), 3)
    return Sampler(model, potential, 5, **options).smc(Rng(0), cases(PROMPTS), num_particles)


@pytest.mark.parametrize("is_probability", [False, True])
@pytest.mark.parametrize("name", list(available("twist")))
def test_laws(name: str, is_probability: bool) -> None:
    entry = lookup("twist", name)
    conditions = torch.tensor([[3, 4], [5, 6]]) if entry.options.get("needs_conditions") else None

    def build(lm: BaseLM) -> Twist:
        twist: Twist = entry.value(lm)
        return probability(twist) if is_probability else twist

    start = math.log(0.5) if is_probability else 0.0
    check_twist(build, tiny_lm("llama"), prompts=PROMPTS, conditions=conditions, start=start)


@pytest.mark.parametrize("name", NAMES)
def test_chunked_gradient_equals_unchunked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = perturbed(name)
    samples = samples_of(drawn(model), model, PROMPTS)

    def gradient() -> torch.Tensor:
        model.twist.module.zero_grad()
        scores = model.score(samples, normaliser=True)
        (scores.log_psi - scores.log_normaliser).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.twist.module.parameters()])

    whole = gradient()
    monkeypatch.setattr("twistlm.sampling.twisted.VOCABULARY_CHUNK", 7 * VOCAB)
    torch.testing.assert_close(gradient(), whole, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_draws_in_parts_have_the_densities_of_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = perturbed(name)
    with monkeypatch.context() as patch:
        patch.setattr("twistlm.sampling.twisted.VOCABULARY_CHUNK", 5 * VOCAB)
        result = drawn(model, num_particles=9, ess_threshold=1.0)
    samples = samples_of(result, model, PROMPTS)
    whole = model.densities(samples, lookup("proposal", "twist_induced").value)
    torch.testing.assert_close(samples.log_p, whole.log_p, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(samples.log_q, whole.log_q, rtol=1e-4, atol=1e-4)


def test_half_precision_copy_follows_the_weights() -> None:
    lm = tiny_lm("llama")
    twist = lookup("twist", "linear").value(lm)
    features = torch.randn(4, lm.feature_size, dtype=torch.bfloat16)
    with torch.no_grad():
        assert (twist.head(features) == 0).all()
        twist.head.weight.add_(1.0)
        torch.testing.assert_close(
            twist.head(features).float(), features.float().sum(-1, keepdim=True).expand(-1, VOCAB), rtol=0.05, atol=0.1
        )


def test_settings_out_of_range_are_refused() -> None:
    lm = tiny_lm()
    with pytest.raises(ConfigError, match="num_layers of at least 2"):
        lookup("twist", "mlp").value(lm, num_layers=1)
    with pytest.raises(ConfigError, match="rank of at least 1"):
        lookup("twist", "low_rank").value(lm, rank=0)
    with pytest.raises(ConfigError, match="borrow"):
        lookup("twist", "tied").value(TabularLM.random(2, 2, 0))
    with pytest.raises(ConfigError, match="unknown twist 'lstm'"):
        lookup("twist", "lstm")
