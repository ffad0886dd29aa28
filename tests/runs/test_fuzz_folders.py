"""Damaged folders: a few every day, and thousands every night."""

from pathlib import Path

import pytest

from tests.fuzz import folders

# First case and number of cases.
PARTS = [(0, 10), (10, 90), *(pytest.param(k, 500, marks=pytest.mark.nightly) for k in range(100, 5000, 500))]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("fuzz") / "template"
    folders.furnish(place)
    return place


@pytest.mark.parametrize(("first", "count"), PARTS)
def test_damaged_folders_are_one_line_and_stay_as_they_are(
    first: int, count: int, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWISTLM_PROGRESS", "0")
    codes, wrong = [], []
    for case, outcome in folders.run(0, range(first, first + count), template, tmp_path / "work"):
        codes.append(outcome.code)
        wrong += [f"case {case.number}, {case.file}, {case.command[0]}: {each}" for each in outcome.problems]
    assert not wrong, "\n".join(wrong)
    # Some damage does no harm, as that of an earlier evaluation, which is left out; about half is found.
    if count > 10:
        assert 0 < codes.count(0) < 0.7 * count
        assert codes.count(2) > 0.3 * count
