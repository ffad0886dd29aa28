"""Files that are whole or absent, and may be shared."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from twistlm.core.errors import DamagedError, StorageError
from twistlm.core.storage import load_json, load_tensors, remedied, save_text, share


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


def test_what_is_damaged_has_one_remedy_wherever_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DamagedError) as raised, remedied("sample again"), remedied("make it again"):
        load_json(tmp_path / "a.json")
    assert str(raised.value) == f"{raised.value.found}; sample again"
    assert raised.value.found.startswith(f"{tmp_path / 'a.json'} is corrupt (")
    sent = pickle.loads(pickle.dumps(raised.value))
    assert (str(sent), sent.found) == (str(raised.value), raised.value.found)


@pytest.mark.parametrize("read", [load_json, load_tensors])
def test_a_pipe_is_not_waited_for(read: Callable[[Path], object], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "twist.safetensors")
    with pytest.raises(StorageError, match=r"twist\.safetensors is no ordinary file"):
        read(tmp_path / "twist.safetensors")
