"""Code of the pages, run where it stands by Sybil, at a size that costs seconds.

Python blocks of a page share their names, and all blocks share a folder. Commands are as the page says them, with small
budgets put after its own, for the last of an option's values counts; in Python what costs time is called with such
budgets.
"""

import filecmp
import re
import shlex
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sybil import Document, Example, Sybil
from sybil.parsers.myst import CodeBlockParser, PythonCodeBlockParser, SkipParser

import twistlm
from twistlm.certificates.effort import Search
from twistlm.cli import main
from twistlm.core import registry
from twistlm.runs.run import Run

ROOT = Path(__file__).parents[2]
JUDGED = ("--num-particles", "2", "4", "--num-samples", "16", "--budget", "16")
SMOKE = ("--preset", "smoke")
SMALL: dict[str, tuple[str, ...]] = {
    "demo": SMOKE,
    "collect": ("--max-draws", "256"),
    "train": ("--num-draws", "256", "--num-updates", "2", "--num-particles", "16"),
    "evaluate": JUDGED,
    "certify": (*JUDGED, "--num-draws", "256"),
    "probability": ("--num-draws", "64", "--num-samples", "64", "--max-rounds", "1"),
    "sample": ("--num-samples", "2"),
    "sweep": (*SMOKE, "--methods", "ctl", "--seeds", "1", "--num-updates", "1"),
}
CALLED: dict[str, dict[str, Any]] = {
    "train": {"num_draws": 1024, "num_updates": 2, "num_particles": 16},
    "fine_tune": {"num_draws": 512, "num_updates": 2, "num_particles": 16},
    "certify": {"num_draws": 256, "num_particles": (2, 4), "num_samples": 16, "budget": 16},
    "probability": {"search": Search(num_draws=64, num_samples=64, max_rounds=1)},
}
MOST_SAMPLES = 64
LEFT_OUT: str | None = None
SKIPPED = re.compile(r"<!-- skip: next \"[^\"]+\" -->")


def parsed(page: Path) -> Document:
    """The page, with what is run in it."""
    parsers = [SkipParser(), PythonCodeBlockParser(), CodeBlockParser("bash", _commands)]
    return Sybil(parsers).parse(page)


def run(page: Path, patch: pytest.MonkeyPatch, without: str | None = None) -> list[str]:
    """Run all of a page's code in the current folder; why each block that was not run was not.

    Args:
        page: its file.
        patch: makes what takes long small.
        without: commands with this word are left out.
    """
    patch.setattr(f"{__name__}.LEFT_OUT", without)
    for name, sizes in CALLED.items():
        patch.setattr(twistlm, name, _small(getattr(twistlm, name), sizes))
    patch.setattr(Run, "evaluate", _small(Run.evaluate, {"num_particles": (2, 4), "num_samples": 16, "budget": 16}))
    sample = Run.sample
    patch.setattr(Run, "sample", lambda run, count, **options: sample(run, min(count, MOST_SAMPLES), **options))
    # What a page registers is gone with it. (Parts register when their modules are imported, which is once.)
    for kind in registry.HOMES:
        registry.available(kind)
    patch.setattr(registry, "_ENTRIES", {kind: dict(entries) for kind, entries in registry._ENTRIES.items()})
    skipped = []
    for example in parsed(page):
        try:
            example.evaluate()
        except unittest.SkipTest as why:
            skipped.append(str(why))
    return skipped


def _small(function: Callable[..., Any], sizes: dict[str, Any]) -> Callable[..., Any]:
    return lambda *given, **options: function(*given, **{**options, **sizes})


def _commands(example: Example) -> str | None:
    """Every line of a block; what is wrong with the first that does not work."""
    for line in example.parsed.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words and LEFT_OUT not in words and (wrong := _command(words)):
            return f"{line}: {wrong}"
    return None


def _command(words: list[str]) -> str | None:
    program, *arguments = words
    if program == "twistlm":
        code = main([*arguments, *_sizes(arguments)])
        return f"exit code {code}" if code else None
    if program == "cmp":
        return None if filecmp.cmp(*arguments, shallow=False) else "they differ"
    if program == "make":
        known = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return None if arguments[0] in known else "no such target"
    if words[:2] == ["python", "-m"]:
        module = ROOT.joinpath(*arguments[1].split("."))
        return None if module.with_suffix(".py").exists() or (module / "__main__.py").exists() else "no such module"
    return "only twistlm, make and python -m are known here: skip it, with a reason"


def _sizes(arguments: list[str]) -> tuple[str, ...]:
    # An experiment knows how many draws its smallest size takes.
    of_experiment = arguments[0] == "train" and len(arguments) > 1 and not arguments[1].startswith("--")
    sizes = (*SMOKE, "--num-updates", "2") if of_experiment else SMALL.get(arguments[0], ())
    return (*sizes, "--max-seconds", "5") if "--gap" in arguments else sizes
