"""Damaged folders: a part of what `make fuzz` tries by the thousand."""

from pathlib import Path

import pytest

from tests.fuzz import folders

CASES = 250


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("fuzz") / "template"
    folders.furnish(place)
    return place


def test_damaged_folders_are_one_line_and_stay_as_they_are(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWISTLM_PROGRESS", "0")
    codes, wrong = [], []
    for case, outcome in folders.run(0, range(CASES), template, tmp_path / "work"):
        codes.append(outcome.code)
        wrong += [f"case {case.number}, {case.file}, {case.command[0]}: {each}" for each in outcome.problems]
    assert not wrong, "\n".join(wrong)
    # Some damage does no harm, and most is found.
    assert 10 < codes.count(0) < CASES / 2
    assert codes.count(2) > CASES / 2
