"""A run that goes on does so with the draws that it began with: others would move its folds, after it has trained."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.architectures import tiny_lm
from tests.core.test_folders import contents
from tests.interrupted import interrupted
from tests.training.test_trainer import CONFIG, small_numbers, tiny_target
from twistlm import Run, Target, train
from twistlm.core.errors import RunError
from twistlm.core.rng import Rng
from twistlm.potentials import Function
from twistlm.runs.folder import RunFolder
from twistlm.sampling.smc import Keep

# More draws than are given: what is grown is grown up to here.
SMALL = replace(CONFIG, num_draws=512, chunk=128, training=replace(CONFIG.training, num_particles=32, num_updates=4))
MADE = ("draws.safetensors", "checkpoint.safetensors", "twist.safetensors")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draws `a`, and `b`: the same continued; and the run that nobody interrupts, trained on `a`."""
    place = tmp_path_factory.mktemp("draws")
    for name, count in (("a", 256), ("b", 512)):
        if name == "b":
            shutil.copy(place / "a", place / "b")
        keep = Keep(features=True, siblings=4)
        tiny_target().collect(Rng(3, ("twistlm collect",)), max_draws=count, chunk=128, path=place / name, keep=keep)
    train(tiny_target(), config=SMALL, out=place / "whole", draws=place / "a")
    return place


def cut(monkeypatch: pytest.MonkeyPatch, out: Path, **how: Any) -> None:
    """Train for two updates, each of which is saved, and be told to end in the third."""
    with interrupted(monkeypatch, 2):
        train(tiny_target(), config=SMALL, out=out, **how)
    begun = out.with_name(f".{out.name}.new") if how.get("exists") == "overwrite" else out
    assert (begun / "checkpoint.safetensors").exists()


def forget(out: Path) -> None:
    """Leave a folder as older versions did, which said nothing of draws."""
    fields = json.loads((out / "config.json").read_text())
    del fields["draws"]
    (out / "config.json").write_text(json.dumps(fields))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("given", ["a", None])
def test_it_goes_on_with_those_and_they_do_not_grow(
    given: str | None, old: bool, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    cut(monkeypatch, out, draws=files / "a")
    if old:
        forget(out)
    run = train(tiny_target(), config=SMALL, out=out, exists="resume", draws=None if given is None else files / given)
    assert run.collection is not None
    assert len(run.collection.draws) == 256
    for name in MADE:
        assert (out / name).read_bytes() == (files / "whole" / name).read_bytes()
    assert RunFolder.open(out).load_description().run == SMALL


@pytest.mark.parametrize("old", [False, True])
def test_others_are_refused(old: bool, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were taken, and all that the folder kept for evaluation was trained on."""
    out = tmp_path / "run"
    cut(monkeypatch, out, draws=files / "a")
    if old:
        forget(out)
    before = contents(out)
    message = (
        r"run holds a run that began with other base draws; leave out --draws to resume .* or choose another --out$"
    )
    with pytest.raises(RunError, match=message):
        train(tiny_target(), config=SMALL, out=out, exists="resume", draws=files / "b")
    assert contents(out) == before


def test_a_copy_is_the_same(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    cut(monkeypatch, out, draws=files / "a")
    shutil.copy(files / "a", tmp_path / "copy")
    train(tiny_target(), config=SMALL, out=out, exists="resume", draws=tmp_path / "copy")
    assert (out / "twist.safetensors").read_bytes() == (files / "whole" / "twist.safetensors").read_bytes()


def test_draws_that_are_gone_are_asked_for(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New ones were collected in their place."""
    out = tmp_path / "run"
    cut(monkeypatch, out, draws=files / "a")
    (out / "draws.safetensors").unlink()
    with pytest.raises(RunError, match=r"draws\.safetensors is gone.*give the same file again with --draws"):
        train(tiny_target(), config=SMALL, out=out, exists="resume")
    with pytest.raises(RunError, match="began with other base draws"):
        train(tiny_target(), config=SMALL, out=out, exists="resume", draws=files / "b")
    train(tiny_target(), config=SMALL, out=out, exists="resume", draws=files / "a")
    assert (out / "twist.safetensors").read_bytes() == (files / "whole" / "twist.safetensors").read_bytes()


def test_a_run_that_collected_its_own_takes_no_others(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    cut(monkeypatch, out)
    assert "draws" not in json.loads((out / "config.json").read_text())
    with pytest.raises(RunError, match="began with other base draws"):
        train(tiny_target(), config=SMALL, out=out, exists="resume", draws=files / "a")
    run = train(tiny_target(), config=SMALL, out=out, exists="resume")
    assert run.collection is not None
    assert len(run.collection.draws) == 512


def test_what_is_built_anew_from_others_begins_anew(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The draft that a kill had left went on with the draws of its own."""
    out = tmp_path / "run"
    shutil.copytree(files / "whole", out)
    cut(monkeypatch, out, draws=files / "a", exists="overwrite")
    run = train(tiny_target(), config=SMALL, out=out, exists="overwrite", draws=files / "b")
    assert run.collection is not None
    assert len(run.collection.draws) == 512
    assert (out / "draws.safetensors").read_bytes() == (files / "b").read_bytes()


def test_what_a_twist_began_as_is_a_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before its first checkpoint, it went on from log ψ = 0 where it was not given its start again."""
    config, message = SMALL.changed(num_draws=128, num_updates=2), r"holds a run with another start"
    first, other = (train(tiny_target(), config=config, seed=seed, shrinkages=()) for seed in (0, 1))
    whole = train(tiny_target(), config=config, out=tmp_path / "whole", start=first)
    assert whole.begun == Run.load(tmp_path / "whole", target=tiny_target()).begun is not None
    for out, started, others in (
        (tmp_path / "cut", first, (None, other)),
        (tmp_path / "cut from none", None, (first,)),
        (tmp_path / "old", first, ()),
    ):
        with interrupted(monkeypatch, 0):
            train(tiny_target(), config=config, out=out, start=started)
        assert not (out / "checkpoint.safetensors").exists()
        before = contents(out)
        for wrong in others:
            with pytest.raises(RunError, match=message):
                train(tiny_target(), config=config, out=out, exists="resume", start=wrong)
        assert contents(out) == before
        if out.name == "old":
            # Older versions said nothing of it.
            fields = json.loads((out / "config.json").read_text())
            del fields["start"]
            (out / "config.json").write_text(json.dumps(fields))
        train(tiny_target(), config=config, out=out, exists="resume", start=started)
        same = (out / "twist.safetensors").read_bytes() == (tmp_path / "whole" / "twist.safetensors").read_bytes()
        assert same == (started is not None)


def test_another_function_is_refused_without_draws_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They had told one φ from another of its name."""
    sources = {"target_source": "proposal", "intermediate_source": "proposal"}
    config = replace(SMALL, num_draws=0, training=replace(SMALL.training, **sources))
    out = tmp_path / "run"
    with interrupted(monkeypatch, 2):
        train(tiny_target(), config=config, out=out)
    before = contents(out)
    with monkeypatch.context() as patch:
        patch.setattr(small_numbers, "__code__", (lambda texts: [-0.5 for text in texts]).__code__)
        with pytest.raises(RunError, match="a model or potential of other content, though of the same names"):
            train(tiny_target(), config=config, out=out, exists="resume")
    with pytest.raises(RunError, match=r"holds a run with another target \(target.num_tokens 4, now 3\); resume"):
        train(tiny_target().changed(num_tokens=3), config=config, out=out, exists="resume")
    assert contents(out) == before
    # Older versions did not say what it was of.
    fields = json.loads((out / "config.json").read_text())
    del fields["fingerprint"]
    (out / "config.json").write_text(json.dumps(fields))
    train(tiny_target(), config=config, out=out, exists="resume")


class Counting:
    """log φ that is another object after every call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, texts: list[str]) -> list[float]:
        self.calls += 1
        return small_numbers(texts)


def test_a_target_is_what_it_was_before_its_first_call(tmp_path: Path) -> None:
    """The draws were of another target than the one that a new process made."""

    def target() -> Target:
        return Target(tiny_lm(), Function(Counting(), log_upper_bound=0.0), "5", 4, eos="ignore")

    train(target(), config=replace(SMALL, training=replace(SMALL.training, num_updates=1)), out=tmp_path / "run")
    collection = Run.load(tmp_path / "run", target()).collection
    assert collection is not None
    assert len(collection.draws) == 512
