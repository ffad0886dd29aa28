"""Two who begin on one place that is not there yet: whoever is too late leaves it to the other."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from twistlm.core import folders
from twistlm.core.errors import RunError
from twistlm.core.folders import writing, writing_file


@pytest.fixture
def overtaken(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Who opens a folder next makes it, and before it is locked, somebody else does something."""
    make = folders._make

    def before(done: Callable[[], object]) -> None:
        def slow(folder: Path) -> list[Path]:
            made = make(folder)
            monkeypatch.setattr(folders, "_make", make)
            done()
            return made

        monkeypatch.setattr(folders, "_make", slow)

    return before


def test_a_new_folder_while_the_other_writes(tmp_path: Path, overtaken: Callable[[Callable[[], object]], None]) -> None:
    place = tmp_path / "deep" / "place"
    with ExitStack() as other:

        def begin() -> None:
            draft = other.enter_context(writing(place))
            (draft.path / "config.json").touch()

        overtaken(begin)
        with pytest.raises(RunError, match="is being written by"), writing(place):
            pass
        assert (place / "config.json").exists()
    assert [path.name for path in place.iterdir()] == ["config.json"]


def test_a_new_folder_when_the_other_has_ended(
    tmp_path: Path, overtaken: Callable[[Callable[[], object]], None]
) -> None:
    place = tmp_path / "deep" / "place"

    def come_and_go() -> None:
        with writing(place) as draft:
            (draft.path / "config.json").write_text("{}")

    overtaken(come_and_go)
    with pytest.raises(ZeroDivisionError), writing(place):
        raise ZeroDivisionError
    assert [path.name for path in place.iterdir()] == ["config.json"]


def test_a_new_folder_goes_again_where_nobody_else_was(tmp_path: Path) -> None:
    def asked(path: Path) -> None:
        with writing(path):
            (path / "config.json").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asked(tmp_path / "deep" / "place")
    assert not list(tmp_path.iterdir())


def test_what_is_to_replace_a_file(tmp_path: Path) -> None:
    place = tmp_path / "draws"
    place.write_text("old")
    with writing_file(place, replace=True) as new:
        new.write_text("new")
        with pytest.raises(RunError, match="is being written by"), writing_file(place, replace=True):
            pass
    assert place.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["draws"]
