"""Rejection sampling: exact in distribution, honest about failure, resumable."""

import os
import signal
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from scipy import stats

from tests.cases import Case, TablePotential, make_case
from twistlm.core.errors import ConfigError, ExactSamplesError, RunError, UpperBoundError
from twistlm.core.rng import Rng
from twistlm.core.signals import Terminated, terminable
from twistlm.models.base import Prompts
from twistlm.sampling.exact.budget import Budget
from twistlm.sampling.exact.collect import collect
from twistlm.sampling.exact.collection import Collection, ExactSamples, load
from twistlm.sampling.sampler import Sampler, WorkerContext
from twistlm.sampling.smc import Keep


def collected(case: Case, **changes: object) -> Collection:
    asked = {"num_samples": None, "max_draws": 4000, "chunk": 1000} | changes
    budget = Budget(**{name: asked.pop(name) for name in ("num_samples", "max_draws", "chunk")})
    return collect(
        Rng(0), WorkerContext(Sampler(case.twisted, case.potential, 3), [case.at]), budget, target="target-a", **asked
    )


def test_accepted_draws_follow_the_target(case: Case) -> None:
    tokens = collected(case, max_draws=20_000).exact.samples.tokens
    truth = case.truth
    number = (tokens * torch.tensor([9, 3, 1])).sum(-1)
    observed = torch.bincount(number, minlength=27).double()
    expected = truth.log_sigma.exp() * len(tokens)
    possible = expected > 0
    assert observed[~possible].sum() == 0
    assert stats.chisquare(observed[possible], expected[possible]).pvalue > 1e-3
    base = torch.bincount((truth.tokens * 1).sum(-1))
    assert base.numel() > 0
    unreweighted = truth.log_p.exp() * len(tokens)
    assert stats.chisquare(observed[possible], unreweighted[possible]).pvalue < 1e-6, "p₀ itself would pass"


def test_resuming_equals_going_through(case: Case, tmp_path: Path) -> None:
    whole = collected(case, save_to=tmp_path / "whole.safetensors", keep=Keep(features=True))
    collected(case, max_draws=2000, save_to=tmp_path / "part.safetensors", keep=Keep(features=True))
    part = load(tmp_path / "part.safetensors", "target-a")
    assert [stream.path for stream in part.streams] == [("collect", 0), ("collect", 1)]
    collected(case, so_far=part, save_to=tmp_path / "part.safetensors", keep=Keep(features=True))
    assert (tmp_path / "part.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    again = load(tmp_path / "whole.safetensors", "target-a")
    assert again.draws.tokens.equal(whole.draws.tokens)
    assert again.draws.log_phi.equal(whole.draws.log_phi)
    assert again.exact.samples.tokens.equal(whole.exact.samples.tokens)
    assert again.draws.features.equal(whole.draws.features)


@dataclass(frozen=True)
class Ends(TablePotential):
    """φ during whose third evaluation the process is told to end."""

    asked: list[int] = field(default_factory=list)

    def log_phi(self, prompts: Prompts, tokens: torch.Tensor) -> torch.Tensor:
        self.asked.append(len(tokens))
        if len(self.asked) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().log_phi(prompts, tokens)


def test_being_told_to_end_leaves_the_chunks_that_there_are(case: Case, tmp_path: Path) -> None:
    collected(case, save_to=tmp_path / "whole.safetensors")
    ends = replace(case, potential=Ends(case.potential.table, case.potential.vocab_size))
    object.__setattr__(ends.potential, "log_upper_bound", 0.0)
    with pytest.raises(Terminated), terminable(signal.SIGTERM):
        collected(ends, save_to=tmp_path / "part.safetensors")
    part = load(tmp_path / "part.safetensors", "target-a")
    assert [stream.path for stream in part.streams] == [("collect", 0), ("collect", 1)]
    collected(case, so_far=part, save_to=tmp_path / "part.safetensors")
    assert (tmp_path / "part.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_stops_once_enough_are_accepted(case: Case) -> None:
    collection = collected(case, num_samples=10, max_draws=100_000, chunk=100)
    assert 10 <= len(collection.exact) < 110


def test_split_is_disjoint_and_complete(case: Case) -> None:
    collection = collected(case)
    parts = collection.split([0.5, 0.25, 0.25])
    assert torch.cat([part.draws.tokens for part in parts]).equal(collection.draws.tokens)
    assert sum(len(part.exact) for part in parts) == len(collection.exact)
    with pytest.raises(ConfigError, match="at most 1"):
        collection.split([0.9, 0.9])


def test_approximate_samples_cannot_pose_as_exact(case: Case) -> None:
    with pytest.raises(ExactSamplesError, match=r"Target\.collect"):
        ExactSamples(case.truth.samples(case.base), "target-a")


def test_refusals(case: Case, tmp_path: Path) -> None:
    collection = collected(case, save_to=tmp_path / "a.safetensors")
    with pytest.raises(ExactSamplesError, match="another target"):
        load(tmp_path / "a.safetensors", "target-b")
    with pytest.raises(RunError, match="does not exist"):
        load(tmp_path / "none.safetensors", "target-a")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:500])
    with pytest.raises(RunError, match="corrupt"):
        load(tmp_path / "cut.safetensors", "target-a")
    with pytest.raises(ExactSamplesError, match="exact samples are needed"):
        collection.exact.take(10**6)
    unbounded = TablePotential(torch.zeros(3), 3)
    with pytest.raises(UpperBoundError, match="declares none"):
        collect(Rng(0), WorkerContext(Sampler(case.base, unbounded, 3), [case.at]), Budget(10), target="t")
    rare = TablePotential(torch.full((3,), -60.0), 3)
    object.__setattr__(rare, "log_upper_bound", 0.0)
    with pytest.raises(ExactSamplesError, match=r"none of 100 draws.*below 3.0e-02"):
        collect(Rng(0), WorkerContext(Sampler(case.base, rare, 3), [case.at]), Budget(100, chunk=100), target="t")


def test_features_recorded_match_recomputed() -> None:
    case = make_case()
    collection = collected(case, keep=Keep(features=True))
    expected = case.base.base_features(collection.draws.prompts, collection.draws.tokens)
    assert collection.draws.features.equal(expected)
