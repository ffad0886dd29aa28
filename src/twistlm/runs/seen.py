"""Whether what a run kept for its evaluation may judge another run: not if that one was trained on it."""

from dataclasses import replace
from typing import TYPE_CHECKING

from twistlm.sampling.cases import Cases
from twistlm.sampling.exact.provenance import refuse_trained_on

if TYPE_CHECKING:
    from twistlm.runs.run import Run


def refuse_judging(run: "Run", cases: Cases, proposing: "Run") -> None:
    """Refuse what `run` kept for evaluation at some of its cases as evidence for another that was trained on it.

    Raises:
        ExactSamplesError: it was; or the other's draws, which had not been read, are not of its target.
    """
    evaluation = run.fold("evaluation")
    if proposing is run or evaluation is None:
        return
    other = _with_draws(proposing)
    parts = [part for name in ("training", "held_out") if (part := other.fold(name)) is not None]
    refuse_trained_on(evaluation.at(cases), parts, run.place, proposing.place)


def _with_draws(run: "Run") -> "Run":
    """The run with the draws in its folder, without which it may have been opened."""
    if run.collection is not None or run.folder is None or not run.folder.draws.exists():
        return run
    collection, twist = run.target.draws(run.folder.draws), run.model.twist
    assert twist is not None
    return type(run)(run.target, run.config, twist, run.folder, replace(collection, draws=collection.draws.bare()))
