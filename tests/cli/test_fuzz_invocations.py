"""Bad invocations of every command: a few every day, and thousands every night."""

import itertools
from collections.abc import Iterator

import pytest

from tests.fuzz.harness import Workspace, furnish
from tests.fuzz.invocations import VALID, invocations, options_of
from twistlm.cli import COMMANDS

SEED = 15
# First case and number of cases.
PARTS = [(0, 5), (5, 45), *(pytest.param(k, 500, marks=pytest.mark.nightly) for k in range(50, 5000, 500))]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TWISTLM_PROGRESS", "0")
        import huggingface_hub.constants

        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        place = tmp_path_factory.mktemp("fuzz")
        furnish(place / "template")
        yield Workspace(place / "template", place / "work")


def test_every_command_and_option_is_tried() -> None:
    assert VALID.keys() == COMMANDS.keys()
    tried: dict[str, set[str]] = {name: set() for name in VALID}
    for case in itertools.islice(invocations(SEED), 5000):
        tried[case.command[0]] |= {each.partition("=")[0] for each in case.command}
    for name, found in tried.items():
        assert {option.flag for option in options_of(name) if option.flag} <= found


@pytest.mark.parametrize(("first", "count"), PARTS)
def test_bad_invocations_end_in_one_line_and_change_nothing(first: int, count: int, workspace: Workspace) -> None:
    wrong = []
    for number, case in itertools.islice(enumerate(invocations(SEED)), first, first + count):
        outcome = workspace.attempt(case.command, case.hopeless)
        if outcome.problems:
            wrong.append(f"case {number}: {case.command}: {outcome.problems} {outcome.said[-300:]}")
    assert not wrong, "\n".join(wrong)


def test_the_harness_sees_what_is_wrong(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that do what none may: each is found out."""
    from pathlib import Path

    from tests.fuzz import harness

    def wrong(what: str) -> list[str]:
        def command(arguments: list[str]) -> int:
            if what == "escapes":
                raise ValueError
            if what == "loses":
                Path("folder/kept.txt").unlink()
            if what == "leaves":
                Path("half-made").mkdir()
            import sys

            print("error: no such thing" if what != "rambles" else "one\ntwo", file=sys.stderr)
            return {"accepts": 0}.get(what, 2)

        monkeypatch.setattr(harness, "main", command)
        return workspace.attempt(["list"], hopeless=True).problems

    assert not wrong("nothing")
    for what in ("escapes", "loses", "leaves", "rambles", "accepts"):
        assert wrong(what), what
