"""The adapted twist, on every architecture: what is trained, shared, saved and sampled from."""

import gc
import warnings
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.architectures import CONFIGS, tiny_lm
from tests.cases import TablePotential, cases, samples_of
from twistlm.core.errors import ConfigError
from twistlm.core.registry import lookup
from twistlm.core.rng import Rng
from twistlm.models.tabular import TabularLM
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.samples import Samples
from twistlm.sampling.twisted import TwistedLM
from twistlm.twists.lora import lora
from twistlm.twists.updates import step

PROMPTS = [torch.tensor([5, 6, 7]), torch.tensor([9])]


def built(architecture: str, dtype: torch.dtype = torch.float32, **options: Any) -> TwistedLM:
    lm = tiny_lm(architecture, dtype)
    with Rng(1).initialising():
        return TwistedLM(lm, lora(lm, **options), "ignore")


def moved(model: TwistedLM, seed: int = 3) -> TwistedLM:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.twist.module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def drawn(model: TwistedLM) -> Samples:
    potential = TablePotential(torch.tensor([-1.0, -2.0, -0.5]), 3)
    result = Sampler(model, potential, 5, ess_threshold=1.0).smc(Rng(0), cases(PROMPTS), 6)
    return samples_of(result, model, PROMPTS)


def log_psi(model: TwistedLM, samples: Samples) -> Tensor:
    return model.twist.head(model.twist_features(samples))


def frozen(model: TwistedLM) -> list[torch.nn.Parameter]:
    return [p for p in model.twist.decoder.module.parameters() if not p.requires_grad]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_starts_at_log_psi_zero_on_the_base_models_own_features(architecture: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = built(architecture)
    samples = drawn(model)
    assert (log_psi(model, samples) == 0).all()
    base = model.base_features(samples.prompts, samples.tokens)
    torch.testing.assert_close(model.twist_features(samples), base, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_cached_steps_equal_teacher_forced_scores_after_every_update(architecture: str, tied: bool) -> None:
    model = built(architecture, tied=tied)
    untouched = [tensor.clone() for tensor in frozen(model)]
    seen = []
    for seed in (3, 4):
        samples = drawn(moved(model, seed))
        seen.append(model.twist_features(samples).detach())
        # With gradient the adapters run beside the frozen matrices, in `drawn` they are merged into them.
        scores = model.score(samples, normaliser=True)
        log_q = samples.log_p + scores.log_psi.double() - scores.log_normaliser.double()
        torch.testing.assert_close(log_q, samples.log_q, rtol=1e-3, atol=1e-3)
        assert (seen[-1] - model.base_features(samples.prompts, samples.tokens)).abs().max() > 0.1
    assert all(torch.equal(now, then) for now, then in zip(frozen(model), untouched, strict=True))


@pytest.mark.parametrize("architecture", CONFIGS)
def test_an_optimiser_step_reaches_the_sampler(architecture: str) -> None:
    model = built(architecture)
    parameters = list(model.twist.module.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=0.1, fused=True)
    samples = drawn(model)
    for _ in range(2):
        step(optimiser, model.score(samples, normaliser=True).log_normaliser.sum(), parameters)
        with_gradient = model.twist_features(samples)
        with torch.no_grad():
            torch.testing.assert_close(model.twist_features(samples), with_gradient.detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_gradients_reach_adapters_and_head_only(architecture: str) -> None:
    model = moved(built(architecture))
    scores = model.score(drawn(model), normaliser=True)
    (scores.log_psi - scores.log_normaliser).square().sum().backward()
    network = model.twist.decoder.module
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in network.named_parameters() if "lora_" in name}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.twist.module.parameters())
    assert all(p.grad is None and not p.requires_grad for p in [*frozen(model), *model.lm.module.parameters()])
    mine = {id(p) for p in model.twist.module.adapters.parameters()}
    assert mine == {id(p) for p in network.parameters() if p.requires_grad}


@pytest.mark.parametrize("architecture", CONFIGS)
def test_only_adapters_and_head_are_saved_and_they_are_enough(architecture: str) -> None:
    model = moved(built(architecture, num_layers=2, width=8))
    saved = {name: tensor.clone() for name, tensor in model.twist.module.state_dict().items()}
    assert all(name.startswith("head.") or "lora_" in name for name in saved)
    adapters = sum(tensor.numel() for name, tensor in saved.items() if name.startswith("adapters."))
    assert adapters == sum(p.numel() for p in model.twist.decoder.module.parameters() if p.requires_grad)
    samples = drawn(model)
    with torch.no_grad():
        expected = log_psi(model, samples)
        loaded = built(architecture, num_layers=2, width=8)
        assert not torch.equal(log_psi(loaded, samples), expected)
        loaded.twist.module.load_state_dict(saved, strict=True)
        assert torch.equal(log_psi(loaded, samples), expected)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_frozen_weights_are_the_base_models_own(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def borrowed(model: TwistedLM) -> list[bool]:
        own = {p.data_ptr() for p in model.lm.module.parameters()}
        return [p.data_ptr() in own for p in frozen(model)]

    assert any(borrowed(built(architecture)))
    # As on a GPU, where nothing is packed.
    monkeypatch.setattr("twistlm.models.packing.packable", lambda weight: False)
    model = built(architecture)
    assert all(borrowed(model))
    samples = drawn(moved(model))
    features = model.twist_features(samples)
    with torch.no_grad():
        torch.testing.assert_close(model.twist_features(samples), features.detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_adapters_of_a_half_precision_model_train_in_float32(architecture: str) -> None:
    model = moved(built(architecture, torch.bfloat16))
    samples = drawn(model)
    scores = model.score(samples, normaliser=True)
    assert {p.dtype for p in model.twist.module.parameters()} == {torch.float32}
    assert {p.dtype for p in frozen(model)} == {torch.bfloat16}
    log_q = samples.log_p + scores.log_psi.double() - scores.log_normaliser.double()
    assert (log_q - samples.log_q).abs().mean() < 0.02
    scores.log_psi.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.twist.module.adapters.parameters())


def test_the_seed_decides_the_adapters() -> None:
    def start(seed: int) -> Tensor:
        lm = tiny_lm("llama")
        torch.manual_seed(99 + seed)
        with Rng(seed // 2).initialising():
            return torch.cat([p.flatten() for p in lora(lm).module.parameters()])

    assert torch.equal(start(2), start(3))
    assert not torch.equal(start(3), start(4))


def test_alpha_scales_the_change() -> None:
    # By default it is twice the rank.
    default, same, other = (moved(built("llama", rank=2, **more)) for more in ({}, {"alpha": 4.0}, {"alpha": 1.0}))
    samples = drawn(default)
    with torch.no_grad():
        expected = default.twist_features(samples)
        assert torch.equal(same.twist_features(samples), expected)
        assert not torch.allclose(other.twist_features(samples), expected, atol=1e-3)


def test_settings_out_of_range_are_refused() -> None:
    build = lookup("twist", "lora").value
    for options, message in (
        ({"rank": 0}, "rank of at least 1, not 0"),
        ({"alpha": 0.0}, "positive alpha, not 0.0"),
        ({"num_layers": 0}, "num_layers of at least 1, not 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(tiny_lm(), **options)
    with pytest.raises(ConfigError, match="needs a transformer to adapt"):
        build(TabularLM.random(2, 2, 0))
    with pytest.raises(ConfigError, match="needs a transformer to copy"):
        lookup("twist", "backbone").value(TabularLM.random(2, 2, 0))


def test_the_network_before_an_update_is_held_no_longer() -> None:
    """It was, with what it had read, until another prompt was."""
    model = built("llama")
    decoder, samples = model.twist.decoder, drawn(model)
    before = weakref.ref(decoder._network())
    model.score(samples).log_psi.sum().backward()
    gc.collect()
    assert before() is None
    drawn(model)
    before = weakref.ref(decoder._network())
    with torch.no_grad():
        next(p for p in decoder.module.parameters() if p.requires_grad).add_(1.0)
    decoder._network()
    gc.collect()
    assert before() is None
