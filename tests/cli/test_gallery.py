"""The gallery: base draws beside samples of the target, for every setting of an experiment."""

import json
from pathlib import Path

import pytest

from twistlm.cli import main


def test_every_picture_has_both_samplers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The other experiments hang in the notebook (test_notebook.py).
    out = tmp_path / "gallery"
    assert main(["gallery", "infilling", "--preset", "smoke", "--num-samples", "2", "--out", str(out)]) == 0
    rows = [json.loads(line) for line in (out / "gallery.jsonl").read_text().splitlines()]
    found = list(dict.fromkeys(row["picture"] for row in rows))
    assert len(found) == 4
    for picture in found:
        ours = [row for row in rows if row["picture"] == picture]
        assert [row["sampler"] for row in ours] == ["base model p₀"] * 2 + ["twisted SMC, 64 particles"] * 2
        assert all(row["text"] for row in ours)
    # Even an untrained twist's particles are chosen by φ: what is shown is better than p₀'s own.
    score = {name: [r["log_phi"] for r in rows if r["sampler"].startswith(name)] for name in ("base", "twisted")}
    assert sum(score["twisted"]) > sum(score["base"])
    assert main(["gallery", "infilling", "--preset", "smoke", "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
