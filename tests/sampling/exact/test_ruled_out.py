"""Exact samples under a constraint and the certain bound on Z, against enumeration."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from twistlm import Target
from twistlm.core.errors import ExactSamplesError
from twistlm.core.rng import Rng
from twistlm.models.tabular import TabularLM
from twistlm.potentials import Function, Regex
from twistlm.sampling.exact.budget import WAVE
from twistlm.sampling.exact.collection import Collection, load
from twistlm.sampling.exact.ruled_out import next_look
from twistlm.sampling.explored import Explored
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.twisted import TwistedLM
from twistlm.testing import Enumeration

EOS = 3
PATTERNS = ["(01)*2?", "[01]{2}2[0-2]", "0?1?2?", "12.*"]


def shorter(texts: list[str]) -> list[float]:
    return [-0.3 * len(text) for text in texts]


def target(pattern: str, eos: str = "absorb", seed: int = 0, **more: object) -> Target:
    lm = TabularLM.random(4, 6, seed, scale=2.0, eos_token_id=EOS)
    phi = Regex(pattern, mode="fullmatch", constrain=True) * Function(shorter, log_upper_bound=0.0)
    prompts = more or {"prompt": "1"}
    return Target(lm, phi, num_tokens=4, eos=eos, **prompts)  # type: ignore[arg-type]


def truth(of: Target, prompt: int = 0) -> Enumeration:
    return Enumeration.of(TwistedLM(of.lm, None, of.eos), of.bound_potential, of.cases[prompt].prompt, of.num_tokens)


@pytest.mark.parametrize("eos", ["absorb", "ignore"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_bound_is_never_below_and_ends_at_z(pattern: str, eos: str) -> None:
    """Before and after every batch; weights never exceed it, and their mean is Z: q is positive where σ is."""
    of = target(pattern, eos)
    assert of.constraint is not None
    enumeration, ruled_out = truth(of), Explored(of.constraint, torch.float64, bounds=True)
    log_Z, before = float(enumeration.log_Z), 0.0
    for number in range(40):
        model = TwistedLM(of.lm, None, eos, constraint=ruled_out.twist)
        drawn = Sampler(model, of.bound_potential, 4).draw_at_once(Rng(number), of.cases, 16)
        log_w = (drawn.log_p - drawn.log_q).sum(-1) + drawn.log_phi
        most = ruled_out.log_value(of.prompt_tokens)
        assert log_Z <= most <= before
        assert float(log_w.max()) <= most + 1e-6
        # log ψ and q of given sequences are those that they were drawn with.
        again = Sampler(model, of.bound_potential, 4).densities(drawn)
        torch.testing.assert_close(again.log_q, drawn.log_q, rtol=0, atol=1e-6)
        log_q = enumeration.log_q(model)
        assert float(log_q.exp().sum()) == pytest.approx(1.0, abs=1e-6)
        assert bool(log_q[enumeration.log_sigma.isfinite()].isfinite().all())
        ruled_out.learn(drawn, 0.0)
        before = most
    assert ruled_out.log_value(of.prompt_tokens) == pytest.approx(log_Z, abs=0.01)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_accepted_draws_are_exact(pattern: str) -> None:
    of = target(pattern)
    collection = of.collect(Rng(1), max_draws=4000, chunk=100)
    exact, enumeration = collection.exact.samples, truth(of)
    number = (exact.tokens * (4 ** torch.arange(3, -1, -1))).sum(-1)
    found = torch.bincount(number, minlength=256) / len(number)
    sigma = enumeration.log_sigma.exp()
    spread = (sigma * (1 - sigma) / len(number)).sqrt()
    assert bool(((found - sigma).abs() <= 4.5 * spread + 1e-12).all())
    # Far more than Z of them, which rejection from p₀ accepts.
    assert len(exact) / 4000 > max(0.8, 4 * float(enumeration.log_Z.exp()))


@pytest.mark.parametrize("prompts", [["1"], ["1", "2", "01"]])
def test_an_interrupted_collection_is_the_same(prompts: list[str], tmp_path: Path) -> None:
    of = target(PATTERNS[0], prompts=prompts)
    whole = of.collect(Rng(2), max_draws=2400, chunk=30)
    path = tmp_path / "draws.safetensors"
    for chunks in (1, 3, 7, 19, 37):
        count = sum(stream.count for stream in whole.streams[:chunks])
        replace(whole.select(torch.arange(count)), streams=whole.streams[:chunks]).save(path)
        parts = of.collect(Rng(2), max_draws=2400, chunk=30, path=path)
        assert len(parts.streams) == len(whole.streams)
        assert torch.equal(whole.draws.tokens, parts.draws.tokens)
    for name in ("tokens", "log_p", "log_q", "log_phi"):
        assert torch.equal(getattr(whole.draws, name), getattr(parts.draws, name)), name
    assert torch.equal(whole.accepted, parts.accepted)
    assert whole.log_uppers == parts.log_uppers
    read = of.draws(path)
    assert read.log_uppers == whole.log_uppers
    assert len(read.exact) == len(whole.exact)
    for number, case in enumerate(of.cases):
        assert read.log_most_of(case) == pytest.approx(float(truth(of, number).log_Z), abs=0.05)
        assert read.log_most_of(case) >= float(truth(of, number).log_Z)


def _moved(collection: Collection) -> Collection:
    return replace(collection, log_most=collection.log_most - 0.5)  # type: ignore[operator]


def _as_base(collection: Collection) -> Collection:
    return replace(collection, log_most=None)


@pytest.mark.parametrize("changed", [_moved, _as_base])
def test_what_was_not_accepted_so_is_refused(changed: Callable[[Collection], Collection], tmp_path: Path) -> None:
    of = target(PATTERNS[0])
    collection = of.collect(Rng(3), max_draws=300)
    with pytest.raises(ExactSamplesError, match="marked as accepted that are not"):
        _ = changed(collection).exact
    changed(collection).save(tmp_path / "draws.safetensors")
    with pytest.raises(ExactSamplesError, match="accepted is not what its random numbers say"):
        load(tmp_path / "draws.safetensors", of.fingerprint)


def test_looks_are_few() -> None:
    looks = [0]
    while looks[-1] < 100:
        looks.append(next_look(looks[-1]))
    assert looks == [0, 1, 2, 4, 8, 16, 32, 48, 64, 80, 96, 112]
    assert all(next_look(k) > k and next_look(k) - k <= WAVE for k in range(200))


def test_no_more_prefixes_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not remembered only keeps the bound from falling."""
    monkeypatch.setattr("twistlm.sampling.explored.MOST_PREFIXES", 6)
    of = target(PATTERNS[2])
    collection = of.collect(Rng(4), max_draws=2000, chunk=100)
    assert collection.log_most_of(of.cases[0]) >= float(truth(of).log_Z)
