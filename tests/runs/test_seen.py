"""What a run kept for its evaluation is no evidence for another that was trained on it, and is for one that was not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import twistlm
from tests.architectures import tiny_lm
from tests.certificates.test_paired import CONFIG as PAIRED
from tests.certificates.test_paired import target as paired_target
from tests.runs.test_certify import CONFIG, small_numbers, tiny_target
from twistlm import Run, Target, fine_tune, train
from twistlm.core.errors import ExactSamplesError
from twistlm.core.rng import Rng
from twistlm.potentials import Function
from twistlm.runs.config import FOLDS
from twistlm.sampling.exact.collection import Collection
from twistlm.sampling.exact.file import Stream
from twistlm.sampling.exact.origins import Origins
from twistlm.sampling.exact.provenance import Seen, refuse_kept
from twistlm.sampling.smc import Keep

HOW: dict[str, Any] = {"num_particles": (2,), "num_samples": 16, "budget": 16}
SMALL = replace(CONFIG, training=replace(CONFIG.training, num_particles=32, num_updates=1), chunk=256)
SEEN = r"keeps draws for evaluation that the training of .* has seen \(\d+ draws in both\): they prove nothing"


def both(judging: Run, proposing: Run) -> None:
    """Certify the one by what the other kept, in both ways that there are."""
    found = twistlm.certify(judging, proposing, **HOW), judging.evaluate(**HOW, proposal_run=proposing, save=False)
    assert all(each.divergences.kl_target_q is not None for each in found)


def judged(judging: Collection, *parts: Collection) -> None:
    """By the draws of A, where B was trained on the others."""
    refuse_kept(judging, Seen(parts, Origins.of(parts)), "A", "B")


@pytest.fixture(scope="module")
def run() -> Run:
    return train(tiny_target(), config=SMALL)


@pytest.mark.parametrize(
    "settings",
    [{"num_draws": 2048}, {"folds": (0.7, 0.2, 0.1)}, {"folds": (0.3, 0.4, 0.3)}, {"chunk": 128}],
)
def test_other_folds_of_the_same_draws_are_refused(settings: dict[str, Any], run: Run) -> None:
    """One seed, and so one stream of draws; every one that judges may be one that was learned from."""
    other = train(tiny_target(), config=replace(SMALL, **settings))
    with pytest.raises(ExactSamplesError, match=SEEN):
        twistlm.certify(run, other, **HOW)
    with pytest.raises(ExactSamplesError, match=SEEN):
        run.evaluate(**HOW, proposal_run=other, save=False)
    fresh = run.target.collect(Rng(0, ("twistlm collect",)), max_draws=256)
    assert twistlm.certify(run, other, draws=fresh, **HOW).divergences.kl_target_q is not None


def test_what_neither_was_trained_on_judges_both(run: Run) -> None:
    for settings in ({}, {"num_draws": 512}, {"folds": (0.3, 0.3, 0.4)}, {"folds": (0.5, 0.1, 0.1)}):
        both(run, train(tiny_target(), config=replace(SMALL, **settings), method="ctl"))
    both(run, run)
    both(run, train(tiny_target(), config=replace(SMALL, num_draws=2048, seed=1)))
    both(run, train(tiny_target(), config=replace(SMALL, num_draws=0), source="proposal", method="dpg"))


def test_a_run_for_another_target_has_seen_them_too(run: Run) -> None:
    lm = tiny_lm()
    target = Target(lm, Function(lambda texts: [x / 2 for x in small_numbers(texts)], log_upper_bound=0.0), "5", 3,
                    eos="ignore")  # fmt: skip
    other = train(target, config=replace(SMALL, num_draws=2048))
    with pytest.raises(ExactSamplesError, match=SEEN):
        twistlm.certify(run, other, **HOW)


def test_it_counts_that_they_were_not_read(run: Run, tmp_path: Path) -> None:
    """As the command opens a run that is to propose."""
    train(tiny_target(), config=replace(SMALL, num_draws=2048), out=tmp_path / "other")
    train(tiny_target(), config=SMALL, out=tmp_path / "same")
    opened = {name: Run.load(tmp_path / name, target=tiny_target(), draws=False) for name in ("other", "same")}
    assert opened["other"].collection is None
    with pytest.raises(ExactSamplesError, match=rf"^in memory {SEEN[:30]}.*training of {tmp_path / 'other'} has seen"):
        run.evaluate(**HOW, proposal_run=opened["other"], save=False)
    run.evaluate(**HOW, proposal_run=opened["same"], save=False)


def test_what_goes_on_collects_others_than_its_start_has_seen() -> None:
    """All that B kept for its evaluation stood in A's training fold: one seed, and so one stream of draws."""

    def seen(run: Run) -> set[tuple[int, tuple[str | int, ...]]]:
        assert run.collection is not None
        return {(stream.seed, stream.path) for stream in run.collection.streams}

    first = train(tiny_target(), config=replace(SMALL, num_draws=2048), shrinkages=())
    tuned = fine_tune(first, "5", config=SMALL, shrinkages=())
    judging, parts = tuned.fold("evaluation"), [run.fold(name) for run in (first, tuned) for name in FOLDS[:2]]
    assert judging is not None
    judged(judging, *(part for part in parts if part is not None))
    assert not seen(tuned) & seen(first)
    assert seen(train(tiny_target(), config=SMALL, start=first)) == seen(tuned)
    # With the twist of its start, as where nothing better is found, it has seen other draws all the same.
    assert tuned.model.twist is not None
    assert first.model.twist is not None
    tuned.model.twist.module.load_state_dict(first.model.twist.module.state_dict())
    assert not seen(train(tiny_target(), config=SMALL, start=tuned)) & (seen(tuned) | seen(first))
    # Nothing is taken over of a run that found nothing.
    first.model.twist.head.shrinkage.fill_(0.0)
    assert seen(train(tiny_target(), config=SMALL, start=first)) <= seen(first)


def test_given_draws_that_the_start_has_seen_are_refused(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("a", "b")}
    for seed, file in enumerate(files.values()):
        tiny_target().collect(Rng(seed, ("twistlm collect",)), max_draws=512, chunk=256, path=file, keep=Keep(True))
    first = train(tiny_target(), config=SMALL, draws=files["a"])
    message = rf"{files['a']} {SEEN[:30]}.* start \(in memory\) has seen .*Give others \(.*another --seed\), or none"
    with pytest.raises(ExactSamplesError, match=message):
        train(tiny_target(), config=replace(SMALL, folds=(0.1, 0.1, 0.8)), draws=files["a"], start=first,
              out=tmp_path / "out")  # fmt: skip
    assert not (tmp_path / "out").exists()
    # The same folds keep what the start kept, too.
    train(tiny_target(), config=SMALL, draws=files["a"], start=first)
    train(tiny_target(), config=replace(SMALL, folds=(0.1, 0.1, 0.8)), draws=files["b"], start=first)


def test_what_was_seen_is_handed_on(tmp_path: Path) -> None:
    """From a run to one that goes on from it, and to the next, also from folders, and without their draws."""

    def collected(name: str, seed: int) -> Path:
        tiny_target().collect(Rng(seed, ("twistlm collect",)), max_draws=512, chunk=256, path=tmp_path / name,
                              keep=Keep(True))  # fmt: skip
        return tmp_path / name

    files = [collected(name, seed) for seed, name in enumerate("abc")]
    others = collected("d", 3)
    target = tiny_target()
    run = train(target, config=SMALL, draws=files[0], shrinkages=(), out=tmp_path / "0")
    for number, file in enumerate(files[1:], 1):
        start = Run.load(tmp_path / str(number - 1), target=target)
        run = train(target, config=SMALL, draws=file, start=start, shrinkages=(), out=tmp_path / str(number))
    opened = Run.load(tmp_path / "2", target=target)
    (tmp_path / "2" / "draws.safetensors").unlink()
    for each in (run, opened, Run.load(tmp_path / "2", target=target)):
        for file in files:
            with pytest.raises(ExactSamplesError, match=rf"{file} holds draws that .* training has seen \(stream \d"):
                twistlm.certify(target, each, draws=file, **HOW)
            with pytest.raises(ExactSamplesError, match=SEEN[:30]):
                train(target, config=replace(SMALL, folds=(0.1, 0.1, 0.8)), draws=file, start=each)
        assert twistlm.certify(target, each, draws=others, **HOW).divergences.kl_target_q is not None
        # What the first kept for its evaluation all of them kept.
        both(Run.load(tmp_path / "0", target=target), each)


def test_with_conditions() -> None:
    config = replace(PAIRED, num_draws=256, chunk=128, training=replace(PAIRED.training, num_updates=1, num_cases=8))
    run, same, other = (train(paired_target(2, 2), config=replace(config, num_draws=n)) for n in (256, 256, 512))
    both(run, same)
    with pytest.raises(ExactSamplesError, match=SEEN):
        both(run, other)
    with pytest.raises(ExactSamplesError, match=SEEN):
        run.evaluate(**HOW, proposal_run=other, save=False)


def test_at_the_prompts_of_a_set() -> None:
    target = Target(tiny_lm(), Function(small_numbers, log_upper_bound=0.0), prompts=["5", "6", "7"], num_tokens=3,
                    eos="ignore")  # fmt: skip

    def trained(**settings: Any) -> Run:
        return train(target, config=replace(SMALL, num_draws=768, **settings))

    run, same, other = trained(), trained(), trained(folds=(0.7, 0.2, 0.1))
    both(run, same)
    with pytest.raises(ExactSamplesError, match=SEEN):
        twistlm.certify(run, other, **HOW)
    for prompts in (None, "all"):
        with pytest.raises(ExactSamplesError, match=SEEN):
            run.evaluate(**HOW, proposal_run=other, prompts=prompts, save=False)
    # There it is judged by new draws.
    run.evaluate(**HOW, proposal_run=other, prompts=["8"], num_draws=64, save=False)


def test_a_stream_that_was_drawn_from_otherwise_is_one_stream(run: Run) -> None:
    assert run.collection is not None
    whole: Collection = run.collection
    judging, other = whole.split((0.25, 0.75))
    judged(judging, other)
    counts = [stream.count for stream in whole.streams]
    # All of its draws but those of the first chunk, as if each had been of one more; and then of that chunk, too.
    longer = replace(other, streams=tuple(replace(each, count=each.count + 1) for each in whole.streams))
    assert longer.positions is not None
    judged(judging, replace(longer, positions=longer.positions + 1))
    with pytest.raises(ExactSamplesError, match=rf"A keeps .* of B has seen \({counts[0]} draws in both\)"):
        judged(judging, longer)
    elsewhere = replace(whole, streams=(Stream(9, ("elsewhere",), sum(counts)),))
    judged(judging, elsewhere)
    rare = [replace(each, draws=replace(each.draws, log_q=each.draws.log_q - 50)) for each in (judging, elsewhere)]
    with pytest.raises(ExactSamplesError, match=r"sequences in both"):
        judged(*rare)
