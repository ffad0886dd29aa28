"""What a run's twist has seen, which is no evidence for it: its own training draws, and those of what it began as."""

from dataclasses import replace
from typing import TYPE_CHECKING

from twistlm.sampling.cases import Cases
from twistlm.sampling.exact.collection import Collection
from twistlm.sampling.exact.origins import Origins
from twistlm.sampling.exact.provenance import Seen, refuse_kept, refuse_offered

if TYPE_CHECKING:
    from twistlm.runs.run import Run

OTHERS = "Give others (a file collected with another --seed), or none, and the run collects its own"


def refuse_draws(offered: Collection, proposing: "Run", where: str) -> None:
    """Refuse draws from elsewhere as evidence for a run that was trained on them.

    Raises:
        ExactSamplesError: it was; or its draws, which had not been read, are not of its target.
    """
    refuse_offered(offered, seen_by(proposing), where)


def refuse_judging(run: "Run", cases: Cases, proposing: "Run") -> None:
    """Refuse what `run` kept for evaluation at some of its cases as evidence for another that was trained on it.

    Raises:
        ExactSamplesError: it was; or the other's draws, which had not been read, are not of its target.
    """
    evaluation = run.fold("evaluation")
    if proposing is run or evaluation is None:
        return
    refuse_kept(evaluation.at(cases), seen_by(proposing), run.place, proposing.place)


def refuse_beginning(run: "Run", start: "Run", where: str) -> None:
    """Refuse what `run` is to keep for evaluation, of the draws from `where`, if its twist begins as one that saw it.

    Raises:
        ExactSamplesError: `start` was trained on it; or its draws, which had not been read, are not of its target.
    """
    evaluation = run.fold("evaluation")
    assert evaluation is not None
    refuse_kept(evaluation, seen_by(start), where, f"start ({start.place})", OTHERS)


def seen_by(run: "Run") -> Seen:
    """What a run was trained on or chosen by, as were those that it goes on from.

    Raises:
        ExactSamplesError: its draws, which had not been read, are not of its target.
    """
    other = _with_draws(run)
    parts = [part for name in ("training", "held_out") if (part := other.fold(name)) is not None]
    return Seen(parts, run.recorded | Origins.of(parts))


def _with_draws(run: "Run") -> "Run":
    """The run with the draws in its folder, without which it may have been opened."""
    if run.collection is not None or run.folder is None or not run.folder.draws.exists():
        return run
    collection, twist = run.target.draws(run.folder.draws), run.model.twist
    assert twist is not None
    return type(run)(run.target, run.config, twist, run.folder, replace(collection, draws=collection.draws.bare()))
