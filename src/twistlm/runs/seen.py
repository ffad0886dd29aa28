"""Whether what a run keeps for its evaluation may judge a twist: not if that, or its beginning, was trained on it."""

from dataclasses import replace
from typing import TYPE_CHECKING

from twistlm.sampling.cases import Cases
from twistlm.sampling.exact.collection import Collection
from twistlm.sampling.exact.provenance import refuse_trained_on

if TYPE_CHECKING:
    from twistlm.runs.run import Run

OTHERS = "Give others (a file collected with another --seed), or none, and the run collects its own"


def refuse_judging(run: "Run", cases: Cases, proposing: "Run") -> None:
    """Refuse what `run` kept for evaluation at some of its cases as evidence for another that was trained on it.

    Raises:
        ExactSamplesError: it was; or the other's draws, which had not been read, are not of its target.
    """
    evaluation = run.fold("evaluation")
    if proposing is run or evaluation is None:
        return
    refuse_trained_on(evaluation.at(cases), _seen(proposing), run.place, proposing.place)


def refuse_beginning(run: "Run", start: "Run", where: str) -> None:
    """Refuse what `run` is to keep for evaluation, of the draws from `where`, if its twist begins as one that saw it.

    Raises:
        ExactSamplesError: `start` was trained on it; or its draws, which had not been read, are not of its target.
    """
    evaluation = run.fold("evaluation")
    assert evaluation is not None
    refuse_trained_on(evaluation, _seen(start), where, f"start ({start.place})", OTHERS)


def _seen(run: "Run") -> list[Collection]:
    """What a run was trained on or chosen by."""
    other = _with_draws(run)
    return [part for name in ("training", "held_out") if (part := other.fold(name)) is not None]


def _with_draws(run: "Run") -> "Run":
    """The run with the draws in its folder, without which it may have been opened."""
    if run.collection is not None or run.folder is None or not run.folder.draws.exists():
        return run
    collection, twist = run.target.draws(run.folder.draws), run.model.twist
    assert twist is not None
    return type(run)(run.target, run.config, twist, run.folder, replace(collection, draws=collection.draws.bare()))
