"""The twist whose network is told the condition first: what it reads, sampled and trained, and what it refuses."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.architectures import CONFIGS, tiny_lm
from twistlm.core.errors import ConfigError, PromptError
from twistlm.core.registry import lookup
from twistlm.core.rng import Rng
from twistlm.models.tabular import TabularLM
from twistlm.potentials import Infilling
from twistlm.sampling.cases import Case
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.samples import Samples
from twistlm.sampling.smc import Keep
from twistlm.sampling.twisted import TwistedLM
from twistlm.twists.prompted import prompted

PROMPTS = [torch.tensor([5, 6, 7]), torch.tensor([5, 6]), torch.tensor([5, 6, 7])]
GIVEN = [torch.tensor([3, 4]), torch.tensor([8, 2]), torch.tensor([9, 9])]
CASES = [Case(prompt, given) for prompt, given in zip(PROMPTS, GIVEN, strict=True)]


def moved(architecture: str = "llama", **options: Any) -> TwistedLM:
    lm = tiny_lm(architecture)
    with Rng(1).initialising():
        twist = prompted(lm, **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in twist.module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return TwistedLM(lm, twist, "ignore")


def drawn(model: TwistedLM, cases: Sequence[Case] = CASES) -> Samples:
    sampler = Sampler(model, Infilling(2).bind(model.lm), 5)
    return sampler.draw(Rng(0), cases, 4, keep=Keep(features=True))


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("architecture", list(CONFIGS))
def test_what_was_drawn_has_the_densities_of_reading_it_at_once(architecture: str, rank: int | None) -> None:
    model = moved(architecture, rank=rank)
    samples = drawn(model)
    again = model.densities(replace(samples, features=None), lookup("proposal", "twist_induced").value)
    torch.testing.assert_close(samples.log_q, again.log_q, rtol=1e-3, atol=1e-3)
    assert (samples.log_q - samples.log_p).abs().max() > 0.01


def test_features_are_those_of_prompt_condition_and_prompt() -> None:
    model = moved()
    samples = drawn(model)
    assert samples.conditions is not None
    assert model.twist is not None
    assert model.twist.decoder is not None
    features = model.twist_features(samples)
    for row in (0, 5, 11):
        prompt, condition = samples.prompts[row], samples.conditions[row]
        read = torch.cat([prompt, condition, prompt])
        alone = model.twist.decoder.features([read], samples.tokens[row : row + 1])
        torch.testing.assert_close(features[row], alone[0], rtol=1e-4, atol=1e-4)
    # With another condition it is another twist.
    swapped = replace(samples, conditions=samples.conditions.flip(0))
    assert (model.twist_features(swapped) - features).abs().max() > 0.01


def test_gradient_reaches_its_network_through_the_condition() -> None:
    model = moved()
    model.score(drawn(model), normaliser=True).log_psi.sum().backward()
    assert model.twist is not None
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.twist.module.parameters())


def test_what_it_cannot_read_is_refused() -> None:
    model = moved()
    room = model.lm.max_length
    assert room is not None
    long = torch.full((room // 2,), 3)
    with pytest.raises(PromptError, match="exceeds the model's context"):
        drawn(model, [Case(long, GIVEN[0])])
    with pytest.raises(ConfigError, match="reads conditions, and none were given"):
        model.start(PROMPTS, 2)
    with pytest.raises(ConfigError, match="rank of at least 1"):
        prompted(tiny_lm(), rank=0)
    with pytest.raises(ConfigError, match="use 'conditional'"):
        prompted(TabularLM.random(2, 2, 0), tied=False)
