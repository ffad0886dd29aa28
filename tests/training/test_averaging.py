"""The running mean of parameters: what it is, and that it is judged and kept."""

from typing import Any

import pytest
import torch

from tests.training.test_trainer import CONFIG, tiny_target
from twistlm import train
from twistlm.core.errors import ConfigError
from twistlm.training.averaging import Average


def test_it_is_the_mean_with_weights_that_fall_off() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    average, values = Average([parameter], 0.5), torch.randn(6, 2)
    expected = torch.zeros(2)
    for count, value in enumerate(values):
        with torch.no_grad():
            parameter.copy_(value)
        average.update()
        kept = min(0.5, (1 + count) / (10 + count))
        expected = kept * expected + (1 - kept) * value
    with average.applied():
        torch.testing.assert_close(parameter.detach(), expected)
    assert torch.equal(parameter.detach(), values[-1])


def test_without_a_rate_there_is_none() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    average = Average([parameter], 0.0)
    average.update()
    with torch.no_grad():
        parameter.add_(1.0)
    with average.applied():
        assert bool((parameter == 1.0).all())
    assert average.state == {}
    with pytest.raises(ConfigError, match="averaging must be at least 0 and below 1"):
        train(tiny_target(), config=CONFIG, averaging=1.0)


def test_what_is_kept_is_the_mean() -> None:
    settings: dict[str, Any] = {"num_updates": 8, "evaluate_every": 8, "shrinkages": (), "informed": "off", "seed": 3}
    plain = train(tiny_target(), config=CONFIG, **settings)
    mean = train(tiny_target(), config=CONFIG, averaging=0.9, **settings)
    # Collected draws are trained on, so the parameters went the same way.
    losses = [[row["loss"] for row in run.history if row["kind"] == "update"] for run in (plain, mean)]
    assert losses[0] == losses[1]
    assert plain.model.twist is not None
    assert mean.model.twist is not None
    pairs = zip(plain.model.twist.module.parameters(), mean.model.twist.module.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
