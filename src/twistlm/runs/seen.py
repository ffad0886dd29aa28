"""What a run's twist has seen, which is no evidence for it: its own training draws, and those of what it began as."""

from dataclasses import replace
from typing import TYPE_CHECKING

from twistlm.sampling.cases import Cases
from twistlm.sampling.exact.origins import Origins
from twistlm.sampling.exact.provenance import Seen, refuse_kept

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
    refuse_kept(evaluation.at(cases), seen_by(proposing), run.place, proposing.place)


def handed_on(start: "Run", run: "Run | None", where: str) -> Origins:
    """What a twist has seen that begins as that of `start`.

    Args:
        start: the run that is gone on from.
        run: the one that goes on, if it is given draws; what it is to keep of them for evaluation must be others.
        where: they come from.

    Raises:
        ExactSamplesError: `start` was trained on them; or its draws, which had not been read, are not of its target.
    """
    seen = seen_by(start)
    if run is not None:
        evaluation = run.fold("evaluation")
        assert evaluation is not None
        refuse_kept(evaluation, seen, where, f"start ({start.place})", OTHERS)
    return seen.origins


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
