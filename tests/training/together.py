"""Training by several processes together, and by one alone: `python -m tests.training.together OUT LOSS ...`.

Started by torchrun it runs in several processes, each of which saves what it found as OUT.RANK.
"""

import sys
from collections.abc import Iterable
from dataclasses import replace

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.architectures import tiny_lm
from tests.cases import make_case
from tests.training.test_trainer import CONFIG, tiny_target
from twistlm import Target, train
from twistlm.core.errors import ConfigError
from twistlm.core.processes import ALONE, Processes
from twistlm.core.rng import Rng
from twistlm.potentials import Function, Infilling
from twistlm.sampling.exact.collect import Budget, collect
from twistlm.sampling.sampler import Sampler, WorkerContext
from twistlm.training.config import TrainingConfig
from twistlm.training.criteria import held_out_divergence, negative_lower_bound
from twistlm.training.parallel import among
from twistlm.training.sources import Setting
from twistlm.training.trainer import Trainer


def found(history: list[dict], module: nn.Module) -> dict[str, Tensor]:
    """The best twist, which may be an early one, and what every update saw of the parameters before it."""
    updates = [[row["loss"], row["grad_norm"], row["ess"]] for row in history if row["kind"] == "update"]
    judged = [row["held_out"]["value"] for row in history if row["kind"] == "evaluation"]
    seen = {"updates": torch.tensor(updates).nan_to_num(), "judged": torch.tensor(judged)}
    assert len(updates) >= 4
    return {name: tensor.flatten() for name, tensor in (module.state_dict() | seen).items()}


# Rows of a batch are not a multiple of the number of processes.
TABULAR = {
    "ctl": {},
    "dpg": {"target_source": "smc"},
    "gkl": {"target_source": "pool", "intermediate_source": "pool", "num_updates": 18},
    "rl": {"intermediate_source": "pool", "num_updates": 18},
    "sixo": {"target_source": "draws+exact"},
    "ppo": {},
    "nvi": {},
    "pcl": {"num_minibatches": 3},
    "fudge": {"intermediate_source": "completions"},
}


def tabular(loss: str, changes: dict, processes: Processes) -> dict[str, Tensor]:
    case = make_case()
    settings = {
        "num_particles": 31, "num_updates": 8, "learning_rate": 0.03, "evaluate_every": 4, "evaluation_samples": 9,
    } | changes  # fmt: skip
    collection = collect(
        Rng(7), WorkerContext(Sampler(case.base, case.potential, 3), [case.at]), Budget(400, chunk=200), target="t"
    )
    training, held_out = collection.split([0.5, 0.5])
    model = case.twisted_for(loss, torch.zeros_like(case.lm.table))
    setting = Setting(Sampler(model, case.potential, 3), [case.at], training)
    judge = negative_lower_bound([case.at]) if loss == "nvi" else held_out_divergence(Rng(8), held_out, [case.at], 51)
    trainer = Trainer(Rng(0), setting, TrainingConfig(loss=loss, **settings), judge, processes=processes)
    return found(trainer.train(), model.twist.module)


def own_network(kind: str, loss: str) -> dict[str, Tensor]:
    """A twist with a transformer of its own; several prompts, and siblings in CTL's expectation."""
    target = Target(tiny_lm(), tiny_target().potential, ["5", "6 7", "8"], 4, eos="ignore")
    config = replace(CONFIG, twist=kind, num_draws=96, num_siblings=2)
    run = train(
        target, config=config, method=loss, num_updates=5, num_particles=25, evaluate_every=2, learning_rate=1e-3,
        target_source="draws", intermediate_source="draws" if loss == "ctl" else "proposal", evaluation_samples=0,
    )  # fmt: skip
    return found(run.history, run.model.twist.module)


def with_value() -> dict[str, Tensor]:
    """A twist whose value is fitted at the end, to the base draws that it trained on."""
    run = train(tiny_target(), config=replace(CONFIG, num_draws=256), num_updates=4, num_particles=33)
    return found(run.history, run.model.twist.module)


def with_conditions() -> dict[str, Tensor]:
    target = Target(tiny_lm(), Infilling(2), "5", 4, eos="ignore")
    config = replace(CONFIG, twist="conditional", num_draws=64, num_siblings=0)
    run = train(
        target, config=config, method="ctl", num_updates=4, num_particles=40, evaluate_every=2, evaluation_samples=0,
        target_source="exact", intermediate_source="proposal",
    )  # fmt: skip
    return found(run.history, run.model.twist.module)


def unbounded() -> dict[str, Tensor]:
    """Nothing can be collected: fresh draws train, and the lower bound judges."""
    target = Target(tiny_lm(), Function(lambda texts: [len(text) / 9 for text in texts]), "5", 4, eos="ignore")
    run = train(target, method="rl", twist="mlp", num_updates=4, num_particles=17, evaluate_every=2)
    return found(run.history, run.model.twist.module)


def everything(losses: Iterable[str], processes: Processes = ALONE) -> dict[str, Tensor]:
    made = {loss: tabular(loss, TABULAR[loss], processes) for loss in losses}
    made |= {
        "backbone": own_network("backbone", "ctl"),
        "lora": own_network("lora", "dpg"),
        "value": with_value(),
        "conditions": with_conditions(),
        "unbounded": unbounded(),
        "parts": in_parts(processes),
    }
    return {f"{name}.{key}": tensor for name, tensors in made.items() for key, tensor in tensors.items()}


def in_parts(processes: Processes) -> dict[str, Tensor]:
    """More draws than are made at once, by processes of several threads, which would draw the parts side by side."""
    before, target = torch.get_num_threads(), tiny_target()
    torch.set_num_threads(2)
    try:
        drawn = among(target.sampler(), processes).draw(Rng(5), target.cases, 1500)
    finally:
        torch.set_num_threads(before)
    return {"tokens": drawn.tokens.flatten(), "log_q": drawn.log_q.flatten()}


def refused() -> None:
    raise ConfigError("the first process alone has seen it")


if __name__ == "__main__":
    processes = Processes.joined()
    try:
        processes.of_first(refused)
    except ConfigError as error:
        assert "has seen it" in str(error)  # noqa: PT017 (in every process)
    else:
        raise AssertionError("an error of the first process is one of all")
    made = everything(sys.argv[2:], processes)
    save_file({name: each.contiguous().clone() for name, each in made.items()}, f"{sys.argv[1]}.{processes.rank}")
    Processes.leave()
