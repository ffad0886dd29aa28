"""A real Ray on this machine: outcomes, kept workers, pieces that kill."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tests.runs.engines.pieces import Work, loaded
from twistlm.core.errors import ConfigError
from twistlm.core.work import Failure
from twistlm.runs.engines import Share, engine
from twistlm.runs.engines.ray import Ray


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    yield
    ray.shutdown()


def test_outcomes_on_actors_that_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pieces = [Work("killed"), Work("killed once", str(tmp_path / "once")), Work("refused"), Work("bug"), Work("fine")]
    with caplog.at_level(logging.WARNING), engine("ray", jobs=2).open(loaded) as team:
        outcomes = dict(team.do(pieces))
        again = dict(team.do([Work("fine")] * 3))
    killed, once, refused, bug, fine = (outcomes[number] for number in range(5))
    assert isinstance(killed, Failure)
    assert killed.message.startswith("it has cost 3 workers: its worker ended")
    assert not isinstance(once, Failure)
    assert once[0] == "killed once"
    assert refused == Failure("TrainingError", "refused by 1 threads")
    assert isinstance(bug, Failure)
    assert "ZeroDivisionError: by nothing" in bug.message
    assert not isinstance(fine, Failure)
    assert max(each[2] for each in again.values() if not isinstance(each, Failure)) > 1


def test_a_context_may_be_a_closure() -> None:
    """Ray's pickle sends what a notebook defines."""
    with engine("ray", jobs=1).open(lambda: [0, 41]) as team:
        assert dict(team.do([lambda context: context[1] + 1])) == {0: 42}


def test_without_an_address_a_cluster_that_somebody_runs_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ray.shutdown()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with engine("ray", jobs=1).open(loaded) as team:
        assert dict(team.do([Work("fine")])).keys() == {0}


def test_a_cluster_that_is_not_there_is_refused_at_once() -> None:
    ray.shutdown()
    with (
        pytest.raises(ConfigError, match=r"no Ray cluster answers at '127.0.0.1:1'"),
        Ray(address="127.0.0.1:1").open(loaded),
    ):
        pass


def test_what_no_machine_has_room_for_is_refused() -> None:
    with (
        pytest.raises(ConfigError, match=r"no machine of the cluster has room for a worker of 1 CPUs, 3 GPUs"),
        Ray(share=Share(gpus=3)).open(loaded),
    ):
        pass
