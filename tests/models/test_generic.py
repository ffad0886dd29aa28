"""A network by its own forward pass and cache: equal to it, and to what runs it in parts."""

from typing import Any

import pytest
import torch

from tests.architectures import CONFIGS, Words, tiny_lm
from tests.cases import TablePotential, cases, samples_of
from tests.models.every import largest_error, tiny
from twistlm.core.errors import ModelError
from twistlm.core.registry import lookup
from twistlm.core.rng import Rng
from twistlm.models.huggingface import HuggingFaceLM
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.twisted import TwistedLM

PROMPTS = [torch.tensor([5, 6, 7]), torch.tensor([9]), torch.tensor([4, 4, 8])]


# Each was wrong by nats in a batch of different lengths, ended in a raw error, or was refused.
@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("bart", "generic"),
        ("trocr", "generic"),
        ("falcon", "generic"),
        ("falcon_h1", "generic"),
        ("mamba", "generic"),
        ("qwen3_next", "generic"),
        ("deepseek_v2", "generic"),
        ("vaultgemma", "fast"),
        ("lfm2", "fast"),
        ("electra", "fast"),
    ],
)
def test_the_models_own_densities(name: str, way: str) -> None:
    lm = HuggingFaceLM(model := tiny(name), Words(), name)
    assert (lm.way, largest_error(model, lm) < 1e-3) == (way, True)


@pytest.mark.parametrize("name", ["xlnet", "bamba", "openai-gpt"])
def test_what_cannot_be_decoded_is_refused_in_a_line(name: str) -> None:
    with pytest.raises(ModelError, match=f"'{name}' .* is not supported: ") as caught:
        HuggingFaceLM(tiny(name), Words(), name)
    assert "\n" not in str(caught.value)


@pytest.fixture(params=["gpt2", "gpt_neo", "llama"])
def both(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[HuggingFaceLM, HuggingFaceLM]:
    """The same model in the fast way and in the generic one."""
    fast = tiny_lm(request.param)
    monkeypatch.setattr("twistlm.models.agreement.KNOWN", frozenset())
    generic = tiny_lm(request.param)
    assert request.param in CONFIGS
    assert (fast.way, generic.way) == ("fast", "generic")
    return fast, generic


@pytest.mark.parametrize(("twist", "options"), [("linear", {}), ("backbone", {}), ("lora", {"rank": 2})])
def test_draws_and_gradients_are_those_of_the_fast_way(
    both: tuple[HuggingFaceLM, HuggingFaceLM], twist: str, options: dict[str, Any]
) -> None:
    found = []
    for lm in both:
        with Rng(1).initialising():
            model = TwistedLM(lm, lookup("twist", twist).value(lm, **options), "ignore")
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in model.twist.module.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        potential = TablePotential(torch.tensor([-1.0, -2.0, -0.5]), 3)
        result = Sampler(model, potential, 5, ess_threshold=1.0).smc(Rng(0), cases(PROMPTS), 6)
        samples = samples_of(result, model, PROMPTS)
        model.twist.head(model.twist_features(samples)).square().sum().backward()
        gradients = [p.grad for p in model.twist.module.parameters() if p.grad is not None]
        found.append((result.log_Z_hat.detach(), samples.tokens, gradients))
    (log_Z, tokens, expected), (log_Z_too, tokens_too, gradients) = found
    assert torch.equal(tokens, tokens_too)
    torch.testing.assert_close(log_Z_too, log_Z, rtol=1e-4, atol=1e-4)
    assert len(expected) == len(gradients) > 0
    for ours, right in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-2, atol=1e-3 * float(right.abs().max()))
