"""Batches that are learned from in parts: each sequence once, and in the mean what the whole says."""

import math
from dataclasses import replace

import pytest
import torch

from tests.cases import Case
from twistlm.core.errors import ConfigError
from twistlm.core.rng import Rng
from twistlm.sampling.sampler import Sampler
from twistlm.training.batches import drawn as batches_of
from twistlm.training.batches import steps
from twistlm.training.config import TrainingConfig
from twistlm.training.losses import objective
from twistlm.training.scoring import score
from twistlm.training.sources import Batch, Setting, independent

COUNT = 60


def drawn(case: Case, num_targets: int) -> Batch:
    sampler = Sampler(case.base, case.potential, case.num_steps)
    return independent(sampler.draw(Rng(5), [case.at], COUNT), num_targets)


@pytest.mark.parametrize(("num_targets", "count", "parts"), [(1, 7, 7), (4, 7, 7), (12, 5, 5), (30, 3, 3), (4, 40, 15)])
def test_an_epoch_has_every_sequence_once(case: Case, num_targets: int, count: int, parts: int) -> None:
    batch = drawn(case, num_targets)
    made = list(steps(Rng(0), {"target": batch, "drawn": batch}, 2, count))
    assert len(made) == 2 * parts
    epochs = []
    for epoch in (made[:parts], made[parts:]):
        assert all(part["target"] is part["drawn"] for part in epoch)
        rows = [part["target"].rows for part in epoch]
        assert torch.cat(rows).sort().values.tolist() == list(range(COUNT))
        epochs.append(rows)
        for part in epoch:
            own = part["target"]
            assert torch.equal(own.samples.tokens, batch.samples.tokens[own.rows])
            # Equally many of each of its targets, one target after the other.
            of = (own.rows // (COUNT // num_targets)).view(own.num_targets, -1)
            assert torch.equal(of, of[:, :1].expand_as(of))
    assert not all(torch.equal(one, other) for one, other in zip(*epochs, strict=True))


def test_one_part_is_the_batch_itself(case: Case) -> None:
    batch = drawn(case, 4)
    (only,) = steps(Rng(0), {"target": batch}, 1, 1)
    assert only["target"] is batch


@pytest.mark.parametrize(("num_targets", "count"), [(1, 6), (4, 5), (12, 4)])
@pytest.mark.parametrize(("loss", "baseline"), [("dpg", False), ("dpg", True), ("fudge", False)])
def test_the_mean_over_parts_is_the_whole(case: Case, loss: str, num_targets: int, count: int, baseline: bool) -> None:
    """For losses that are linear in weights that do not move with the twist."""
    batch, wanted = replace(drawn(case, num_targets), baseline=baseline), objective(loss)
    model = case.twisted_for(loss, torch.randn(case.lm.table.shape, dtype=torch.float64))

    def found(batches: dict[str, Batch]) -> tuple[torch.Tensor, float]:
        scoring = score(model, batches, normaliser=wanted.normaliser)
        return torch.autograd.grad(wanted(scoring.scored), model.twist.module.table)[0], scoring.ess

    whole, ess = found(dict.fromkeys(wanted.roles, batch))
    parts = list(steps(Rng(1), dict.fromkeys(wanted.roles, batch), 1, count))
    sizes = [len(part[wanted.roles[0]].samples) for part in parts]
    gradients = [found(part) for part in parts]
    mean = sum(size / COUNT * gradient for size, (gradient, _) in zip(sizes, gradients, strict=True))
    torch.testing.assert_close(mean, whole)
    assert not torch.allclose(gradients[0][0], whole)
    # The effective number is of all that was drawn.
    assert math.isnan(ess) == ("target" not in wanted.roles)
    assert [part_ess for _, part_ess in gradients] == pytest.approx([ess] * len(parts), rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize(("source", "expected"), [("proposal", True), ("base", False), ("smc", False)])
def test_only_draws_of_the_proposal_have_a_baseline(case: Case, source: str, expected: bool) -> None:
    setting = Setting(Sampler(case.twisted, case.potential, 3), [case.at])
    for asked in (True, False):
        config = TrainingConfig("dpg", source, num_particles=8, baseline=asked)
        (batch,) = batches_of(Rng(0), config, setting, [case.at], ["target"]).values()
        part = next(iter(batch.parts(Rng(1), 2)))
        assert batch.baseline is part.baseline is (asked and expected)


def test_no_sequence_has_more_than_its_share(case: Case) -> None:
    batch = drawn(case, 3)
    far = replace(batch, log_w=batch.log_w.index_fill(0, torch.tensor([1, 21]), 9.0))
    made = far.truncated(0.3)
    shares = torch.softmax(made.log_w.view(3, -1), -1)
    assert shares.amax(-1).tolist() == pytest.approx([0.3, 0.3, float(torch.softmax(batch.log_w[40:], 0).max())])
    assert torch.equal(made.log_w[2:20], batch.log_w[2:20])
    # Of twenty, a share below 1 / √20 would leave out more than noise.
    assert float(torch.softmax(far.truncated(0.001).log_w[:20], 0).max()) == pytest.approx(20**-0.5)
    for share in (0.0, 1.5):
        with pytest.raises(ConfigError, match="max_share must be above 0 and at most 1"):
            TrainingConfig(max_share=share)


def test_there_is_at_least_one() -> None:
    with pytest.raises(ConfigError, match="num_minibatches must be at least 1, not 0"):
        TrainingConfig(num_minibatches=0)
