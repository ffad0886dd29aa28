"""Evaluations made afterwards are kept beside: a sweep's table goes on saying what the sweep found."""

import json
from pathlib import Path

import pytest

from tests.core.test_folders import SWEEP, TRAIN, contents
from twistlm.cli import main
from twistlm.runs.sweeps.folder import Cell, SweepFolder

CHEAP = ["--num-particles", "2", "--num-samples", "16", "--budget", "8"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweeps") / "sweep"
    assert main([*SWEEP, "--out", str(path)]) == 0
    return path


def test_a_table_is_made_of_what_the_sweep_found(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = sweep / "ctl" / "seed-0"
    assert main(["report", str(sweep)]) == 0
    before, own = (sweep / "table.csv").read_text(), (run / "done.json").read_bytes()
    for seed in ("5", "6"):
        assert main(["evaluate", str(run), *CHEAP, "--seed", seed]) == 0
        assert f"Written to {run / 'certificate.json'}" in " ".join(capsys.readouterr().out.split())
    assert (run / "done.json").read_bytes() == own
    assert main(["report", str(sweep)]) == 0
    assert (sweep / "table.csv").read_text() == before
    kept = [json.loads(path.read_text()) for path in sorted((run / "evaluations").iterdir())]
    assert [each["settings"]["seed"] for each in kept] == [5, 6]
    assert all(each["settings"]["num_particles"] == [2] and each["time"].startswith("20") for each in kept)
    assert main([*SWEEP, "--out", str(sweep)]) == 0
    assert "all 1 runs are done" in capsys.readouterr().out
    assert (run / "done.json").read_bytes() == own
    # A report shows all of them.
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Other evaluations" in page
    assert page.count("num_particles [2], num_samples 16") == 1


def test_done_is_a_fact_of_its_own(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, cell = SweepFolder.open(sweep), Cell("ctl", 0)
    done = folder.run(cell).path / "done.json"
    own = done.read_bytes()
    done.unlink()
    assert not folder.finished(cell)
    # Read by json, and too deep for anything that walks through it.
    for text in (b"{}", b'{"nested": ' + b"[" * 800 + b"]" * 800 + b"}"):
        done.write_bytes(text)
        assert main(["report", str(sweep)]) == 2
        assert "done.json is" in capsys.readouterr().err
    done.write_bytes(own)
    assert main(["report", str(sweep)]) == 0


def test_of_a_plain_run_the_last_evaluation_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main([*TRAIN, "--out", str(run)]) == 0
    for seed in ("1", "2", "3"):
        assert main(["evaluate", str(run), *CHEAP, "--seed", seed]) == 0
    assert "2 more in" in capsys.readouterr().out
    assert json.loads((run / "certificate.json").read_text())["settings"]["seed"] == 3
    kept = [json.loads(path.read_text())["settings"]["seed"] for path in sorted((run / "evaluations").iterdir())]
    assert kept == [1, 2, 3]
    assert main(["sample", str(run), "--num-samples", "2", "--seed", "1"]) == 0
    first = contents(run)
    assert main(["sample", str(run), "--num-samples", "2", "--seed", "2"]) == 0
    (before,) = (run / "samples").iterdir()
    for path in before.iterdir():
        assert path.read_bytes() == first[path.name]
    assert {path.name for path in before.iterdir()} == {"samples.jsonl", "base_samples.jsonl", "diagnostics.json"}
    # A certificate of another twist is none of this one.
    twist = (run / "twist.safetensors").read_bytes()
    (run / "twist.safetensors").write_bytes(twist[:-1] + bytes([twist[-1] ^ 1]))
    assert main(["report", str(run)]) == 2
    assert "has another twist than its certificate is of" in capsys.readouterr().err
