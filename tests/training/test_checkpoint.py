"""What a checkpoint holds comes back as it was, and what does not belong is refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from twistlm.core.errors import ConfigError, RunError
from twistlm.core.storage import load_tensors, save_tensors
from twistlm.models.tabular import TabularLM
from twistlm.sampling.samples import Samples
from twistlm.sampling.twisted import TwistedLM
from twistlm.training import optimisers
from twistlm.training.checkpoint import Checkpoint, Progress, Tensors
from twistlm.training.value import fit_value
from twistlm.twists.tabular import TabularHead


class Folder:
    """A store of one file, with three lines of metrics."""

    def __init__(self, path: Path) -> None:
        self.checkpoint = path / "checkpoint.safetensors"

    def metrics(self) -> list[dict[str, Any]]:
        return [{}, {}, {}]

    def append_metrics(self, row: Mapping[str, Any]) -> None: ...

    def truncate_metrics(self, count: int) -> list[dict[str, Any]]:
        return self.metrics()[:count]

    def save_twist(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None: ...

    def save_checkpoint(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        save_tensors(self.checkpoint, tensors, metadata)

    def load_checkpoint(self) -> tuple[Tensors, dict[str, Any]] | None:
        return load_tensors(self.checkpoint) if self.checkpoint.exists() else None


def twist(value: float) -> Tensors:
    return {"weight": torch.full((2, 3), value), "bias": torch.full((3,), -value)}


PARAMETERS = list(twist(0.0).values())
KEPT = optimisers.kept("adamw", PARAMETERS)
STATE = {
    index: {"step": torch.tensor(4.0), "exp_avg": parameter + 1, "exp_avg_sq": parameter + 2}
    for index, parameter in enumerate(PARAMETERS)
}


def load(store: Folder, num_updates: int = 10) -> Checkpoint | None:
    expected = {name: values.requires_grad_() for name, values in twist(0.0).items()}
    return Checkpoint.load(store, expected, KEPT, num_updates)


@pytest.mark.parametrize("generations", [0, 12])
def test_everything_comes_back(tmp_path: Path, generations: int) -> None:
    store = Folder(tmp_path)
    assert load(store) is None
    # As older checkpoints have it, a whole text among the names.
    progress = Progress(done=4, best_value=0.5, best_update=2, warnings=["at update 20 the held-out …", "collapse"])
    pool = [twist(float(k)) for k in range(generations)]
    Checkpoint(progress, 3, twist(1.0), twist(2.0), STATE, pool).save(store)
    back = load(store)
    assert back is not None
    assert (back.progress, back.rows) == (progress, 3)
    for tensors, expected in [(back.twist, twist(1.0)), (back.best, twist(2.0)), *zip(back.pool, pool, strict=True)]:
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert back.optimiser.keys() == STATE.keys()
    assert all(torch.equal(back.optimiser[k][name], STATE[k][name]) for k in STATE for name in STATE[k])


def test_before_the_first_update_the_optimiser_has_kept_nothing(tmp_path: Path) -> None:
    store = Folder(tmp_path)
    Checkpoint(Progress(), 0, twist(1.0), twist(1.0), {}).save(store)
    back = load(store)
    assert back is not None
    assert back.optimiser == {}


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (Checkpoint(Progress(done=11), 3, twist(1.0), twist(1.0), STATE), "knows of 11 updates and 3 lines"),
        (Checkpoint(Progress(done=4), 9, twist(1.0), twist(1.0), STATE), "9 lines of metrics, and there are 10 and 3"),
        (Checkpoint(Progress(), 3, {"weight": torch.zeros(2, 3)}, twist(1.0), STATE), "bias"),
        (Checkpoint(Progress(), 3, twist(1.0), {"other": torch.zeros(1)}, STATE), "other|weight"),
        (Checkpoint(Progress(), 3, twist(1.0), twist(1.0), STATE, [{"weight": torch.zeros(5)}]), "weight|bias"),
        (Checkpoint(Progress(), 3, twist(1.0), twist(1.0), {0: STATE[0]}), "exp_avg"),
        (
            Checkpoint(Progress(), 3, twist(1.0), twist(1.0), {0: {**STATE[0], "row_var": torch.ones(2, 1)}}),
            "row_var has no place|exp_avg is missing",
        ),
        (Checkpoint(Progress(), 3, twist(1.0), twist(-torch.inf), STATE), "numbers|no training leaves"),
        (
            Checkpoint(Progress(), 3, twist(1.0), {**twist(1.0), "weight": twist(-torch.inf)["weight"]}, STATE),
            "weight has values that no training leaves",
        ),
        (
            Checkpoint(
                Progress(), 3, twist(1.0), twist(1.0), {**STATE, 0: {**STATE[0], "step": torch.tensor(-torch.inf)}}
            ),
            "step has values that no training leaves",
        ),
        (Checkpoint(Progress(done=-1), 3, twist(1.0), twist(1.0), STATE), "done"),
    ],
)
def test_what_does_not_belong_is_refused(saved: Checkpoint, message: str, tmp_path: Path) -> None:
    store = Folder(tmp_path)
    saved.save(store)
    with pytest.raises(RunError, match=message):
        load(store)


def test_only_a_twist_with_a_value_has_it_fitted() -> None:
    lm = TabularLM.random(2, 3, 0)
    model = TwistedLM(lm, TabularHead.twist(torch.zeros_like(lm.table)), "ignore")
    nothing = torch.zeros(1, 2, dtype=torch.float64)
    draws = Samples([torch.tensor([1])], torch.tensor([[0, 1]]), nothing == 0, nothing, nothing, nothing[:, 0])
    with pytest.raises(ConfigError, match="no value to be fitted; use one that has, such as 'low_rank'"):
        fit_value(model, draws, draws)
