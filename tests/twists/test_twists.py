"""Every registered twist, on every kind of path it is used in."""

import pytest
import torch

from tests.architectures import VOCAB, tiny_lm
from tests.cases import TablePotential, cases, samples_of
from twistlm.core.errors import ConfigError
from twistlm.core.kernels import normaliser
from twistlm.core.registry import available, lookup
from twistlm.core.rng import Rng
from twistlm.models.tabular import TabularLM
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.twisted import TwistedLM
from twistlm.twists.base import Twist
from twistlm.twists.sigmoid import probability

PROMPTS = [torch.tensor([5, 6, 7]), torch.tensor([9])]
# Those that read conditions are tested with their targets (test_conditional.py).
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


@pytest.mark.parametrize("name", NAMES)
def test_starts_at_log_psi_zero(name: str) -> None:
    lm = tiny_lm("llama")
    twist = lookup("twist", name).value(lm)
    features = torch.randn(2, 3, lm.feature_size)
    assert (twist.head(features) == 0).all()
    assert twist.head(features).shape == (2, 3, VOCAB)
    result = drawn(TwistedLM(lm, twist, "ignore"))
    torch.testing.assert_close(result.particles.log_w, result.log_phi, rtol=0, atol=1e-5)


@pytest.mark.parametrize("is_probability", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_can_start_at_any_constant_which_leaves_the_proposal_alone(name: str, is_probability: bool) -> None:
    lm = tiny_lm("llama")
    twist = lookup("twist", name).value(lm)
    twist = probability(twist) if is_probability else twist
    twist.head.start_at(-3.0)
    features = torch.randn(2, 3, lm.feature_size)
    torch.testing.assert_close(twist.head(features).float(), torch.full((2, 3, VOCAB), -3.0))
    result = drawn(TwistedLM(lm, twist, "ignore"), ess_threshold=0.0)
    torch.testing.assert_close(result.particles.log_q, result.particles.log_p, rtol=0, atol=1e-5)
    torch.testing.assert_close(result.particles.log_w, result.log_phi, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_incremental_and_teacher_forced_scores_agree(name: str) -> None:
    model = perturbed(name)
    result = drawn(model, ess_threshold=1.0)
    samples = samples_of(result, model, PROMPTS)
    scores = model.score(samples, normaliser=True)
    log_psi, log_normaliser = scores.log_psi, scores.log_normaliser
    # After the last step the particles carry log φ, so compare through log q = log p + log ψ − log Σ pψ.
    log_q = samples.log_p + log_psi.double() - log_normaliser.double()
    torch.testing.assert_close(log_q, samples.log_q, rtol=1e-3, atol=1e-3)
    plain = model.score(samples)
    assert plain.log_normaliser is None
    torch.testing.assert_close(plain.log_psi, log_psi, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_receives_gradient(name: str) -> None:
    model = perturbed(name)
    samples = samples_of(drawn(model), model, PROMPTS)
    scores = model.score(samples, normaliser=True)
    log_psi, log_normaliser = scores.log_psi, scores.log_normaliser
    (log_psi * torch.randn_like(log_psi)).sum().add(log_normaliser.sum()).backward()
    silent = [n for n, p in model.twist.module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A key projection's bias cancels in the softmax over keys; nothing else may be silent.
    assert not silent
    assert all(p.grad is None for p in model.lm.module.parameters())


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


@pytest.mark.parametrize("shrinkage", [1.0, 0.5])
@pytest.mark.parametrize("name", NAMES)
def test_the_heads_own_normaliser_has_the_gradient_of_the_sum_written_out(name: str, shrinkage: float) -> None:
    model = perturbed(name)
    assert model.twist is not None
    head, lm = model.twist.head, model.lm
    head.shrinkage.fill_(shrinkage)
    features = torch.randn(9, lm.feature_size, generator=torch.Generator().manual_seed(5))
    upstream = torch.linspace(-1.0, 2.0, 9)

    def logits(part: slice) -> torch.Tensor:
        with torch.no_grad():
            return lm.logits(features[part])

    def value_and_gradients(compute) -> list[torch.Tensor]:  # type: ignore[no-untyped-def]
        model.twist.module.zero_grad()
        total = compute()
        (total * upstream).sum().backward()
        gradients = [p.grad.clone() for p in model.twist.module.parameters() if p.grad is not None]
        return [total.detach(), *gradients]

    own = value_and_gradients(lambda: head.log_normaliser(features, logits, 4))
    written = value_and_gradients(lambda: normaliser.of_head(head, features, logits, 4))
    for mine, truth in zip(own, written, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-3, atol=1e-4)
