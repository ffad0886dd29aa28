"""The chat requests that are part of the package are what their card says, and are in the wheel."""

import tomllib
from pathlib import Path

from twistlm.runs.prompts import requests_file

PACKAGE = Path(__file__).parents[2] / "src" / "twistlm"
TEXT = requests_file().read_bytes().decode("utf-8")
LINES = TEXT.removesuffix("\n").split("\n")


def test_one_request_on_every_line_and_none_twice() -> None:
    assert TEXT.endswith("\n")
    assert len(LINES) == 225
    assert all(line == line.strip() and 4 <= len(line.split()) <= 30 for line in LINES)
    assert len({line.casefold() for line in LINES}) == len(LINES)


def test_the_card_says_what_is_there() -> None:
    card = requests_file().with_name("README.md").read_text(encoding="utf-8")
    words = [len(line.split()) for line in LINES]
    assert f"{len(words)} requests in English" in card
    assert f"{min(words)} to {max(words)} words" in card


def test_every_file_that_is_not_code_is_in_the_wheel() -> None:
    settings = tomllib.loads((PACKAGE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    packed = {
        path for pattern in settings["tool"]["setuptools"]["package-data"]["twistlm"] for path in PACKAGE.glob(pattern)
    }
    assert requests_file() in packed
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert files <= packed
