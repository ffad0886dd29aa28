"""Bad invocations of the command line, from a seed: every command, every option, up to four things wrong.

What must hold: no traceback; exit code 2, or 1 where the system refuses, with one line on standard error; everything
that was there before is there byte for byte, and nothing else is. Code 0 only if the command did what was asked: a
value that no option takes never gets it.
"""

import inspect
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from tests.fuzz.harness import PROMPT_FILES, Outcome, Workspace
from twistlm.cli import COMMANDS

# Values that no number is, and those that some are.
NO_NUMBERS = ("nan", "x", "", "None", "1,5", "0x10", "1e", "--", "½", "1\0", "\udcff")
NUMBERS = (
    "-1", "0", "1", "2", "3", "-0", "0.5", "1.5", "-inf", "inf", "1e300", "-1e300", "1e-320", "1e12", "1" + "0" * 12,
    "1" + "0" * 30, "9" * 4400, "1_000_000_000_000", "٣", "+2", " 2",
)  # fmt: skip
NO_TEXTS = ("", "\udcff", "a\0b")
TEXTS = (
    "None", "ünknown", "x" * 5000, "../../etc/passwd", "[red]x[/red]", "[/b]", "-1", "{}", "%s", "a\nb", " ", "ctl+",
    "*ctl", "0*ctl", "nan*ctl", "ctl", "ctl+dpg", "base", "base:2", "base:", "tempered", "tempered:nan", "tempered:2",
    "all", ",", "ctl,,rl", "1 star", "6 stars", "exact", "pool+", "run", "file", "folder", "empty", "draws.safetensors",
    "os:getcwd", "nowhere:f", "json:", ":", "(", "(?P<", "stories", "toxicity", "smoke", "paper!", "toxicty",
    "regex:pattern=(", "regex", "jigsw:label=x", "classifier:model=toxicity,label=rude", "threshold:scorer=(regex", "2",
)  # fmt: skip
NO_PATHS = ("a\0b", "\udcff", "new/\udcff.json")
PATHS = (
    "", ".", "..", "/", "file", "file/new.json", "folder", "folder/kept.txt", "empty", "dangling", "loop", "x" * 300,
    "d/" * 2500 + "x", "/dev/full", "/proc/new.json", "/proc/self/new/x", "run", "run/config.json", "run/new.json",
    "draws.safetensors", "[b]x[/b]", "None", " ", "new", "new.json", "new.html", "new/deeper/x.html", "file.html",
    "sweep", "link", "link/new.json", "con\ntrol", "~", "-new", "new.safetensors", *PROMPT_FILES,
)  # fmt: skip
NO_OPTIONS = ("--nope", "--num-tokenss", "--out-", "---", "--no-resume=1", "-z")

# Of each command: valid, and so small that it costs little where nothing is wrong with it after all.
TINY = ("--num-particles", "2", "--num-samples", "4", "--budget", "4")
INFILLING = ("infilling", "--preset", "smoke", "--num-tokens", "2", "--num-condition", "1")
VALID: dict[str, tuple[str, ...]] = {
    "demo": ("--preset", "smoke", "--out", "new"),
    "list": ("loss",),
    "collect": (*INFILLING, "--max-draws", "8", "--out", "new.safetensors"),
    "train": (*INFILLING, "--num-updates", "1", "--num-particles", "4", "--out", "new"),
    "evaluate": ("run", *TINY),
    "certify": ("run", *TINY, "--num-draws", "64", "--out", "new.json"),
    "probability": ("Once upon", "--regex", "e", "--thresholds", "1", "--num-tokens", "2", "--num-draws", "64",
                    "--num-samples", "64", "--max-rounds", "1", "--out", "new"),
    "sample": ("run", "--num-samples", "2"),
    "serve": ("run", "--port", "0"),
    "report": ("run", "--out", "new.html"),
    "sweep": (*INFILLING, "--methods", "ctl", "--seeds", "1", "--num-updates", "1", "--out", "new"),
}  # fmt: skip
# Nothing valid of these is cheap, or ends, so something is always surely wrong with them.
HEAVY = ("demo", "sweep", "report", "serve")


@dataclass(frozen=True)
class Invocation:
    """One command line; `hopeless` if it has a value that nothing takes, so that it must be refused."""

    command: tuple[str, ...]
    hopeless: bool


@dataclass(frozen=True)
class Option:
    """An option of a command: its flag, "" for a positional, and the plain types of its values."""

    flag: str
    kinds: frozenset[Any]
    many: bool


def invocations(seed: int) -> Iterator[Invocation]:
    """Endless, and the same for the same seed."""
    for number in range(2**62):
        yield make(random.Random(f"{seed} {number}"))


def run(seed: int, numbers: range, template: Path, place: Path) -> Iterator[tuple[Invocation, Outcome]]:
    """Attempt the cases of these numbers, one after the other."""
    workspace = Workspace(template, place)
    for case in itertools.islice(invocations(seed), numbers.start, numbers.stop):
        yield case, workspace.attempt(case.command, case.hopeless)


def make(rng: random.Random) -> Invocation:
    """A valid command line with a few things wrong."""
    name = rng.choice(list(VALID))
    arguments, hopeless = list(VALID[name]), False
    options = options_of(name)
    rng.shuffle(options)
    if rng.random() < 0.1:
        arguments += arguments[-2:]
    for option in options[: rng.randint(0, 3)]:
        values, impossible = _value(rng, option)
        arguments = _replaced(arguments, option, values, rng)
        hopeless |= impossible
    match rng.choices(("nothing", "more", "conflict", "unknown", "missing"), (6, 1, 1, 1, 1))[0]:
        case "more":
            arguments += rng.choices(TEXTS + PATHS, k=2)
        case "conflict":
            arguments += ["--resume", "--overwrite"]
            hopeless = True
        case "unknown":
            arguments.append(rng.choice(NO_OPTIONS))
            hopeless = True
        case "missing" if name not in ("demo", "list"):
            # Of every other command the first argument says what it is about.
            arguments, hopeless = list(rng.choice(((), VALID[name][1:]))), True
    if name in HEAVY and not hopeless:
        arguments, hopeless = [*arguments, "--nope"], True
    if any(each.startswith("/dev") for each in arguments):
        # Root could replace a device; nothing here should give it the chance.
        arguments = [each for each in arguments if each != "--overwrite"]
    return Invocation((name, *arguments), hopeless)


def options_of(name: str) -> list[Option]:
    """Every option of a command, those of experiments among them."""
    found: list[Option] = []
    for parameter in inspect.signature(COMMANDS[name]).parameters.values():
        annotation = parameter.annotation
        inner = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
        if is_dataclass(inner):
            own = [inspect.get_annotations(each, eval_str=True) for each in reversed(inner.__mro__)]  # type: ignore[union-attr]
            hints = {name: hint for each in own for name, hint in each.items()}
            found += [_option(field.name, hints[field.name]) for field in fields(inner)]
        else:
            found.append(_option(parameter.name, annotation))
    return found


def _option(name: str, annotation: Any) -> Option:
    text, kinds = repr(annotation), frozenset(_kinds(annotation))
    return Option("" if "Positional" in text else f"--{name.replace('_', '-')}", kinds, "tuple" in text)


def _kinds(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Literal:
        yield str
    elif origin is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif get_args(annotation):
        for each in get_args(annotation):
            yield from _kinds(each)
    elif annotation in (int, float, str, Path, bool):
        yield annotation


def _value(rng: random.Random, option: Option) -> tuple[list[str], bool]:
    """Values for an option, and whether they are impossible."""
    kind = next(iter(option.kinds))
    if kind is bool:
        return [], False
    no, maybe = {
        int: (NO_NUMBERS, NUMBERS), float: (NO_NUMBERS, NUMBERS), Path: (NO_PATHS, PATHS), str: (NO_TEXTS, TEXTS),
    }[kind]  # fmt: skip
    impossible = rng.random() < 0.4
    values = [rng.choice(no if impossible else maybe)]
    if option.many:
        values += rng.choices(maybe, k=rng.randint(0, 2))
    return values, impossible


def _replaced(arguments: list[str], option: Option, values: list[str], rng: random.Random) -> list[str]:
    """The arguments with an option's value in the place of the one that is there, or added."""
    if not option.flag:
        return [*values, *arguments[1:]]
    # Joined, a value that begins with "-" is a value.
    joined = values and rng.random() < 0.5
    values = [f"{option.flag}={values[0]}", *values[1:]] if joined else [option.flag, *values]
    if option.flag not in arguments:
        return [*arguments, *values]
    # Where an option is given twice the last one counts.
    at = len(arguments) - 1 - arguments[::-1].index(option.flag)
    return [*arguments[:at], *values, *arguments[at + (1 if bool in option.kinds else 2) :]]
