"""Where targets differ by a condition: draws that are there teach again, and are exact for their own conditions."""

import pytest
import torch

from tests.architectures import tiny_lm
from twistlm import Target, train
from twistlm.core.errors import ConfigError
from twistlm.core.rng import Rng
from twistlm.potentials import Infilling
from twistlm.training.batches import drawn
from twistlm.training.config import TrainingConfig
from twistlm.training.sources import Setting


def target() -> Target:
    return Target(tiny_lm(), Infilling(2), "5", 3, eos="ignore")


def test_collected_draws_teach_each_with_its_own_condition() -> None:
    config = TrainingConfig("dpg", "draws", num_particles=6, num_cases=6)
    run = train(target(), loss="dpg", source="draws", num_updates=1, num_draws=64, seed=3)
    at = Setting(run.sampler(), target().cases, collection=run.fold("training"))
    first, second = (drawn(Rng(k), config, at, at.targets, ["target"])["target"].samples for k in (1, 2))
    assert len(first) == 6
    assert not torch.equal(first.tokens, second.tokens)
    assert at.collection is not None
    there = at.collection.draws
    assert first.conditions is not None
    assert there.conditions is not None
    pairs, known = (torch.cat([each.tokens, each.conditions], -1) for each in (first, there))
    assert bool((pairs.unsqueeze(1) == known).all(-1).any(-1).all())


def test_they_are_target_samples_alone() -> None:
    with pytest.raises(ConfigError, match="set it to 'base' or 'proposal'"):
        train(target(), method="gkl", num_updates=1, num_draws=64, intermediate_source="draws")
    with pytest.raises(ConfigError, match="knows one target only"):
        train(target(), method="dpg", source="pool", num_updates=1, num_draws=64)
