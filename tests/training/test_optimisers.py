"""Optimisers: a learning rate means the same for all, and checkpoints know what each keeps."""

import pytest
import torch

from tests.cases import make_case
from twistlm.core.errors import ConfigError
from twistlm.core.registry import available
from twistlm.core.rng import Rng
from twistlm.sampling.exact.budget import Budget
from twistlm.sampling.exact.collect import collect
from twistlm.sampling.sampler import Sampler, WorkerContext
from twistlm.training import optimisers
from twistlm.training.config import TrainingConfig
from twistlm.training.criteria import held_out_divergence
from twistlm.training.sources import Setting
from twistlm.training.trainer import Trainer

NAMES = list(available("optimiser"))


def moved(name: str, parameters: list[torch.Tensor], updates: int = 1, seed: int = 0) -> torch.optim.Optimizer:
    """The optimiser after random gradients of very different sizes."""
    made = optimisers.build(parameters, TrainingConfig(optimiser=name, learning_rate=0.01, weight_decay=0.0))
    torch.manual_seed(seed)
    for _ in range(updates):
        for scale, parameter in zip((1e-3, 1.0, 1e3, 1.0), parameters, strict=True):
            parameter.grad = scale * torch.randn_like(parameter)
        made.step()
    return made


def parameters() -> list[torch.Tensor]:
    shapes = ((40, 60), (70,), (3, 20, 30), ())
    return [torch.zeros(shape, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("name", NAMES)
def test_a_first_step_from_zero_is_as_long_as_the_learning_rate(name: str) -> None:
    start = parameters()
    moved(name, start)
    for parameter in start:
        length = float(parameter.detach().square().mean().sqrt())
        # Factored moments are not those of each number.
        assert length == pytest.approx(0.01, rel=0.05), parameter.shape


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_kept_is_what_is_said(name: str, dtype: torch.dtype) -> None:
    start = [parameter.detach().to(dtype).requires_grad_() for parameter in parameters()]
    state = moved(name, start, updates=3).state_dict()["state"]
    said = optimisers.kept(name, start)
    assert [state[k].keys() for k in range(len(start))] == [each.keys() for each in said]
    for k, each in enumerate(said):
        for label, like in each.items():
            assert (state[k][label].shape, state[k][label].dtype) == (like.shape, like.dtype), label


def test_adafactor_keeps_next_to_nothing() -> None:
    start = [torch.zeros(500, 300, requires_grad=True)]
    sizes = {name: sum(like.numel() for like in optimisers.kept(name, start)[0].values()) for name in NAMES}
    assert sizes["adafactor"] == 1 + 500 + 300
    assert sizes["adamw"] == 1 + 2 * 500 * 300


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [0, 1])
def test_it_trains_the_table_towards_the_truth(name: str, seed: int) -> None:
    case = make_case()
    config = TrainingConfig(
        optimiser=name, loss="ctl", num_particles=200, num_updates=150, learning_rate=0.03, weight_decay=0.0,
        evaluate_every=25, patience=None,
    )  # fmt: skip
    model = case.twisted_for("ctl", torch.zeros_like(case.lm.table))
    place = WorkerContext(Sampler(case.base, case.potential, 3), [case.at])
    held_out = collect(Rng(7 + seed), place, Budget(2000, chunk=2000), target="t")
    setting = Setting(Sampler(model, case.potential, 3), [case.at])
    Trainer(Rng(seed), setting, config, held_out_divergence(Rng(8), held_out, [case.at], 1000)).train()
    assert case.truth.kl_target_q(model) < 0.35 * case.truth.kl_target_q(case.base)
    assert case.truth.kl_q_target(model) < 0.5 * case.truth.kl_q_target(case.base)


def test_another_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="unknown optimiser 'adam'; did you mean 'adamw'"):
        TrainingConfig(optimiser="adam")
