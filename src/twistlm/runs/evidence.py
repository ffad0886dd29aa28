"""What is known of a run's target at prompts: from draws that it kept there, or from new ones where it never was."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from twistlm.certificates.evidence import Evidence, acceptance, ruled_out
from twistlm.certificates.log_Z import of_draws
from twistlm.core.errors import NoneAcceptedError, UpperBoundError
from twistlm.core.rng import Rng
from twistlm.core.work import Engine
from twistlm.sampling.cases import Cases
from twistlm.sampling.exact.collection import Collection
from twistlm.sampling.prompts import Entry, Prompts
from twistlm.sampling.target import Target

if TYPE_CHECKING:
    from twistlm.runs.run import Run

ALL = "all"


@dataclass(frozen=True)
class AtPrompts:
    """Prompts with their names, and what is known of the target at each."""

    cases: Cases
    names: list[str]
    evidence: list[Evidence]


def at_prompts(
    run: "Run",
    prompts: Prompts | Entry | Iterable[Entry] | None,
    rng: Rng,
    num_draws: int,
    engine: Engine | None = None,
) -> AtPrompts:
    """Where a run is to be certified, and by what.

    Args:
        run: with a target of several prompts, or one that is taken to others.
        prompts: new ones; "all" of the run's own; by default those that training has not seen, or all if it saw all.
        rng: of the draws at new prompts.
        num_draws: base draws for each of them.
        engine: who draws; by default this process.
    """
    cases, asked = where(run, prompts)
    names = list(asked.names)
    if prompts is None or prompts == ALL:
        return AtPrompts(cases, names, of_run(run, cases))
    collection = _drawn(run.target.at(prompts), rng, num_draws, engine)
    halves = None if collection is None else collection.split((0.5, 0.5))
    found = of_collection(cases, None if halves is None else halves[1], [] if halves is None else halves[:1])
    return AtPrompts(cases, names, found)


def where(run: "Run", prompts: Prompts | Entry | Iterable[Entry] | None) -> tuple[Cases, Prompts]:
    """The prompts that are asked for, as cases and as they are written; `prompts` as for `at_prompts`."""
    target = run.target
    if prompts is not None and prompts != ALL:
        goal = target.at(prompts)
        return goal.cases, goal.prompts
    numbers = range(len(target.cases)) if prompts == ALL or not run.held_out else run.held_out
    return [target.cases[r] for r in numbers], target.prompts.select(numbers)


def of_run(run: "Run", cases: Cases) -> list[Evidence]:
    """What the draws that a run kept say at cases of its own."""
    others = [each for each in (run.fold("training"), run.fold("held_out")) if each is not None]
    return of_collection(cases, run.fold("evaluation"), others)


def of_collection(cases: Cases, evaluation: Collection | None, others: Sequence[Collection]) -> list[Evidence]:
    """What draws say of the target at each case: exact samples from the one part, log Z from the others."""
    if evaluation is None:
        return [Evidence()] * len(cases)
    return [_of(*parts) for parts in zip(*(each.at_each(cases) for each in (evaluation, *others)), strict=True)]


def _of(here: Collection, *others: Collection) -> Evidence:
    """At one prompt, where any part may have no draws."""
    log_weights = torch.cat([each.log_weights for each in others])
    witnesses = (of_draws(log_weights, here.log_upper_bound),) if len(log_weights) else ()
    exact = here.exact
    return Evidence(exact if len(exact) else None, witnesses, acceptance(here), ruled_out(here))


def _drawn(goal: Target, rng: Rng, num_draws: int, engine: Engine | None) -> Collection | None:
    if num_draws == 0:
        return None
    count = num_draws * len(goal.cases)
    try:
        return goal.collect(rng, max_draws=count, chunk=min(512, count), engine=engine)
    except NoneAcceptedError as error:
        kept: Collection = error.collection
        return kept
    except UpperBoundError:
        return None
