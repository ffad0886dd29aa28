"""What is known of a run's target at prompts: from draws that it kept there, or from new ones where it never was."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from twistlm.certificates.evidence import Evidence, acceptance
from twistlm.certificates.log_Z import of_draws
from twistlm.core.errors import NoneAcceptedError, UpperBoundError
from twistlm.core.rng import Rng
from twistlm.sampling.cases import Case, Cases
from twistlm.sampling.exact.collection import Collection
from twistlm.sampling.prompts import Entry, Prompts

if TYPE_CHECKING:
    from twistlm.runs.run import Run

ALL = "all"


@dataclass(frozen=True)
class AtPrompts:
    """Prompts with their names, and what is known of the target at each."""

    cases: Cases
    names: list[str]
    evidence: list[Evidence]


def at_prompts(run: "Run", prompts: Prompts | Entry | Iterable[Entry] | None, rng: Rng, num_draws: int) -> AtPrompts:
    """Where a run is to be certified, and by what.

    Args:
        run: with a target of several prompts, or one that is taken to others.
        prompts: new ones; "all" of the run's own; by default those that training has not seen, or all if it saw all.
        rng: of the draws at new prompts.
        num_draws: base draws for each of them.
    """
    target = run.target
    known = {tuple(case.prompt.tolist()): name for case, name in zip(target.cases, target.prompts.names, strict=True)}
    if prompts is None or prompts == ALL:
        cases = target.cases if prompts == ALL or not run.held_out_cases else run.held_out_cases
        names = [known[tuple(case.prompt.tolist())] for case in cases]
        evaluation, others = run.fold("evaluation"), [run.fold("training"), run.fold("held_out")]
        return AtPrompts(cases, names, [_of(case, evaluation, [each for each in others if each is not None])
                                        for case in cases])  # fmt: skip
    goal = target.at(prompts)
    collection = _drawn(run, goal.cases, rng, num_draws)
    halves = None if collection is None else collection.split((0.5, 0.5))
    found = [Evidence() if halves is None else _of(case, halves[1], halves[:1]) for case in goal.cases]
    return AtPrompts(goal.cases, list(goal.prompts.names), found)


def _of(case: Case, evaluation: Collection | None, others: list[Collection]) -> Evidence:
    """One half for the exact samples, the other for log Z; either may have no draws at the prompt."""
    if evaluation is None:
        return Evidence()
    here = evaluation.at([case])
    log_phi = torch.cat([other.at([case]).draws.log_phi for other in others])
    witnesses = (of_draws(log_phi, evaluation.log_upper_bound),) if len(log_phi) else ()
    exact = here.exact
    return Evidence(exact if len(exact) else None, witnesses, acceptance(here))


def _drawn(run: "Run", cases: Cases, rng: Rng, num_draws: int) -> Collection | None:
    if num_draws == 0:
        return None
    goal = run.target
    try:
        return goal.collect(rng, max_draws=num_draws * len(cases), chunk=min(512, num_draws * len(cases)), cases=cases)
    except NoneAcceptedError as error:
        kept: Collection = error.collection
        return kept
    except UpperBoundError:
        return None
