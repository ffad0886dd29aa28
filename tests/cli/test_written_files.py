"""Files that commands write: what is said of them is so, and none takes another's place unasked."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from twistlm.cli import main
from twistlm.core.folders import writing_file
from twistlm.runs import certify as certification
from twistlm.sampling.exact import collect as collecting

TINY = ["infilling", "--preset", "smoke", "--num-tokens", "2", "--num-condition", "1"]
CERTIFY = ["certify", *TINY, "--num-draws", "64", "--num-particles", "2", "--num-samples", "4", "--budget", "4"]
COLLECT = ["collect", *TINY, "--max-draws", "4096"]


@pytest.fixture(autouse=True)
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWISTLM_PROGRESS", "0")


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """What a command shows, and the one line that it is refused with."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    (line,) = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    return printed.out, line


# --- Certificates ---


def test_a_certificate_replaces_no_file_that_came_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, made = tmp_path / "c.json", certification.certify

    def slowly(*given: Any, **more: Any) -> Any:
        certificate = made(*given, **more)
        out.write_text("somebody else's")
        return certificate

    monkeypatch.setattr(certification, "certify", slowly)
    shown, said = refused([*CERTIFY, "--out", str(out)], capsys)
    assert f"{out} exists already; choose another --out" in said
    assert out.read_text() == "somebody else's"
    # What took hours is not lost with it.
    assert "KL(q‖σ)" in shown
    assert "Written to" not in shown
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


def test_two_certificates_of_one_name_are_not_made_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "c.json"
    with writing_file(out), monkeypatch.context() as patch:
        patch.setattr(certification, "certify", lambda *_, **__: pytest.fail("it was made all the same"))
        assert f"{out} is being written by process {os.getpid()}" in refused([*CERTIFY, "--out", str(out)], capsys)[1]
    assert not list(tmp_path.iterdir())
    assert main([*CERTIFY, "--out", str(out)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


# --- Draws ---


def told_to_end(arguments: list[str], chunk: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The last line of a command that gets SIGTERM when it has drawn so many chunks."""
    judged, drawn = collecting._judged, []

    def count(*given: Any) -> Any:
        drawn.append(given)
        if len(drawn) > chunk:
            os.kill(os.getpid(), signal.SIGTERM)
        return judged(*given)

    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collecting, "_judged", count)
        assert main(arguments) == 128 + signal.SIGTERM
    return capsys.readouterr().err.splitlines()[-1]


def test_what_is_said_of_draws_that_were_to_be_overwritten_is_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, whole = tmp_path / "draws.safetensors", tmp_path / "whole.safetensors"
    overwrite = [*COLLECT, "--out", str(out), "--overwrite"]
    assert told_to_end(overwrite, 0, capsys) == "terminated"
    assert not out.exists()
    # Nothing was there: what was drawn is.
    said = "terminated; --resume in place of --overwrite continues what was saved"
    assert told_to_end(overwrite, 1, capsys) == said
    assert main([*COLLECT, "--out", str(out), "--resume"]) == 0
    assert main([*COLLECT, "--out", str(whole)]) == 0
    assert out.read_bytes() == whole.read_bytes()
    # Something was there: it is, still.
    assert told_to_end([*overwrite, "--seed", "1"], 1, capsys) == "terminated; what was there is as it was"
    assert out.read_bytes() == whole.read_bytes()
    assert told_to_end([*COLLECT, "--max-draws", "8192", "--out", str(out), "--resume"], 1, capsys) == (
        "terminated; --resume continues what was saved"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["draws.safetensors", "whole.safetensors"]


def test_draws_come_in_whole_chunks_as_help_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["collect", "--help"])
    help_of = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "at most so many sequences" in help_of
    assert "rounded up to whole chunks (2,048 in most presets)" in help_of
    assert main([*COLLECT, "--max-draws", "2049", "--out", str(tmp_path / "draws.safetensors")]) == 0
    assert "among 4096 draws" in capsys.readouterr().out
