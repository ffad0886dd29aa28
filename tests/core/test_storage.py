"""Files that are whole or absent, and may be shared."""

from pathlib import Path

import pytest

from twistlm.core.storage import save_text, share


def test_shared_files_are_never_written_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.write_text("draws")
    share(source, tmp_path / "link")
    assert source.samefile(tmp_path / "link")
    save_text(source, "more draws")
    assert (tmp_path / "link").read_text() == "draws"
    source.write_text("draws")
    monkeypatch.setattr(Path, "hardlink_to", lambda *arguments: (_ for _ in ()).throw(OSError("no links here")))
    share(source, tmp_path / "copy")
    assert not source.samefile(tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "draws"
