"""The benchmark runs, and its rows make sense; how fast anything is, is not a unit test's business."""

import json
import math
from pathlib import Path

import pytest


def test_quick_benchmark_measures_every_task_in_every_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent)
    from benchmarks.sampling import Options, main

    rows = main(Options(quick=True, output=tmp_path / "results.json"))
    assert {(row.name, row.dtype) for row in rows} == {
        (name, dtype)
        for name in ("generate", "base", "smc_mlp", "smc_mlp_long", "ctl_update_mlp")
        for dtype in ("fp32", "bf16")
    }
    assert all(math.isfinite(row.ratio) and row.ratio > 0 and row.peak_mb > 0 for row in rows)
    assert all(row.ratio == 1.0 for row in rows if row.name == "generate")
    record = json.loads((tmp_path / "results.json").read_text())
    assert len(record["rows"]) == len(rows)
    assert record["machine"]["torch"]
