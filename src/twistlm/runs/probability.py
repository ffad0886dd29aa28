"""Probabilities of an event in a folder: what was asked and found, the texts, and while it runs what resuming needs.

`probability.json` says what was asked, and in the end what was found; `events.jsonl` has the texts. Every round and
every part of the fresh draws is saved under `state/` as it ends, so that a killed search, resumed, ends as if nothing
had been.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from twistlm.certificates import rare_events
from twistlm.certificates.effort import Search
from twistlm.certificates.events import Event
from twistlm.certificates.probability import Probability, PromptProbability
from twistlm.core.errors import ConfigError, DamagedError, RunError
from twistlm.core.folders import writing
from twistlm.core.plain import several
from twistlm.core.remote import opened
from twistlm.core.storage import (
    as_json,
    as_type,
    load_json,
    load_lines,
    parse_json,
    remove_temporary,
    save_json,
    save_lines,
)
from twistlm.core.work import Engine
from twistlm.runs.folder import versions
from twistlm.runs.folder.place import Place, check_policy, otherwise, says
from twistlm.sampling.target import Target

NAME, EVENTS, STATE, PAGE = "probability.json", "events.jsonl", "state", "probability.html"
FORMAT = 1
# All that the command leaves in a folder.
NAMES = (NAME, EVENTS, f"{STATE}/*.safetensors", PAGE)


@dataclass(frozen=True)
class Said:
    """What a folder says of itself; what was asked stands beside that."""

    found: tuple[Probability, ...] | None


@dataclass(frozen=True, kw_only=True)
class EventRow(Event):
    """A text in which the event happened, and which event at which prompt that was."""

    threshold: float
    prompt: str

    @property
    def event(self) -> Event:
        """The text alone."""
        return Event(**{each.name: getattr(self, each.name) for each in fields(Event)})


def probability(
    target: Target,
    thresholds: float | Iterable[float],
    *,
    search: Search | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    exists: str = "refuse",
    report: Callable[[str], None] | None = None,
    engine: Engine | None = None,
) -> list[Probability]:
    """P[φ ≥ threshold] for each threshold, at each prompt of the target and over all of them.

    Args:
        target: base model, prompts and length; its potential is the score.
        thresholds: of φ, one or several in any order; they go from easy to hard, each from the last one's twist on.
        search: how hard to look.
        seed: of everything random.
        out: folder, or a URL of one in a store, for what is found, and for what resuming needs; None for neither.
        exists: what to do with a folder that is there: "refuse", "resume" or "overwrite".
        report: is told first what all of this will take, which costs a few draws, and then of every round; None logs
            the rounds.
        engine: who draws (`twistlm.engine`); by default this process.

    Raises:
        ConfigError: the target differs by a condition, a threshold is not above 0 or can never be reached, or
            none is given.
        RunError: the folder exists and must not, is something else, or was asked something else.
        StorageError: the system refuses.
    """
    search = search or Search()
    thresholds = several(thresholds)
    rare_events.check(target, thresholds)
    look = partial(rare_events.probability, search=search, seed=seed, report=report, engine=engine)
    if out is None:
        return look(target, thresholds)
    with opened(out, write=True) as place:
        asked = _asked(target, thresholds, search, seed)
        return _in_folder(place, exists, asked, target.prompts.names, partial(look, target, thresholds))


def _in_folder(
    out: Path, exists: str, asked: Mapping[str, Any], names: Sequence[str], look: Callable[..., list[Probability]]
) -> list[Probability]:
    """What is found at prompts of these names, and kept in a folder on this machine."""
    check_folder(out, exists)
    with ExitStack() as stack:
        draft = stack.enter_context(writing(out, replace=exists == "overwrite", goes_on=partial(_is_of, asked)))
        folder = draft.path
        check_folder(out, exists)
        found = _begun(folder, out, asked, names)
        if found is None:
            remove_temporary(folder)
            remove_temporary(folder / STATE)
            begun = Place(folder)
            found = look(state=folder / STATE)
            begun.check_there()
            save_lines(folder / EVENTS, _rows(found))
            save_json(folder / NAME, {**_said(folder)[0], "found": found})
        shutil.rmtree(folder / STATE, ignore_errors=True)
        draft.take_place()
    return found


def check_folder(path: Path, exists: str) -> None:
    """Refuse early, before anything is loaded, what `probability` would refuse.

    Raises:
        RunError: the folder exists and must not, something else is there or in it, or nobody can tell.
        StorageError: the system refuses to say.
        ConfigError: unknown policy.
    """
    check_policy(path, exists, _is_ours, "a folder of `twistlm probability`", NAMES)


def _is_ours(path: Path) -> bool:
    """Whether such a folder is there for certain, of whatever format."""
    return says(path / NAME, {"format": int, "thresholds": list, "search": dict})


def load(path: str | Path) -> list[Probability]:
    """What was found in a folder.

    Raises:
        RunError: there is none, it is damaged, or nothing has been found yet.
    """
    with opened(path, write=False) as place:
        return _load(place)


def _load(path: Path) -> list[Probability]:
    found = _said(path)[1].found
    if found is None:
        raise RunError(f"{path} has not been finished; continue it with twistlm probability … --resume")
    events: dict[tuple[float, str], list[Event]] = {}
    for number, line in enumerate(load_lines(path / EVENTS), 1):
        where = f"{path / EVENTS} at line {number}"
        row = as_type(EventRow, parse_json(line, where), where)
        events.setdefault((row.threshold, row.prompt), []).append(row.event)

    def with_events(each: PromptProbability, threshold: float) -> PromptProbability:
        return replace(each, events=tuple(events.get((threshold, each.name), ())))

    return [replace(one, by_prompt=tuple(with_events(each, one.threshold) for each in one.by_prompt)) for one in found]


def _said(folder: Path) -> tuple[dict[str, Any], Said]:
    """What a folder says of itself, as JSON values and as far as it has types.

    Raises:
        RunError: nothing, or something else; the message names the file, the field and the value.
    """
    values: dict[str, Any] = load_json(folder / NAME)
    return values, as_type(Said, values, str(folder / NAME))


def _asked(target: Target, thresholds: Sequence[float], search: Search, seed: int) -> dict[str, Any]:
    """What makes it what it is, as JSON values."""
    try:
        described: Any = target.spec()
    except ConfigError:
        # A potential without a JSON form: its fingerprint tells it from others.
        described = {"fingerprint": target.fingerprint}
    asked = {"format": FORMAT, "target": described, "thresholds": sorted(thresholds), "search": search, "seed": seed}
    # Names of weights and functions say nothing of what is in them.
    known = {} if target.known_fingerprint is None else {"fingerprint": target.known_fingerprint}
    values: dict[str, Any] = as_json({**asked, **known})
    return values


def _different(there: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Names of what was asked otherwise, among all that a file says of itself."""
    return otherwise({name: each for name, each in there.items() if name in {*asked, "fingerprint"}}, asked)


def _begun(folder: Path, place: Path, asked: Mapping[str, Any], names: Sequence[str]) -> list[Probability] | None:
    """What was found there already, at prompts of these names; None if there is something to do."""
    if not (folder / NAME).exists():
        save_json(folder / NAME, {**asked, "versions": versions(), "found": None})
        return None
    there, said = _said(folder)
    different = _different(there, asked)
    if different == ["fingerprint"]:
        raise RunError(
            f"{place} was asked of a model or potential of other content, though by the same names; resume with what "
            "it was started with, or choose another --out"
        )
    if different:
        raise RunError(
            f"{place} was asked with another {', '.join(different)}; resume with what it was started with, or choose "
            "another --out"
        )
    if said.found is None:
        return None
    found = _load(folder)
    named = all([each.name for each in one.by_prompt] == list(names) for one in found)
    if not named or [each.threshold for each in found] != asked["thresholds"]:
        raise DamagedError(
            f"{folder / NAME} is damaged: what was found is of other prompts or thresholds than were asked"
        )
    return found


def _is_of(asked: Mapping[str, Any], folder: Path) -> bool:
    """Whether what an earlier attempt has left is of the same question."""
    try:
        there, _ = _said(folder)
    except RunError:
        return False
    return not _different(there, asked)


def _rows(found: Sequence[Probability]) -> list[dict[str, Any]]:
    """The events as rows of a file."""
    return [
        {"threshold": each.threshold, "prompt": prompt.name, **asdict(event)}
        for each in found
        for prompt in each.by_prompt
        for event in prompt.events
    ]
