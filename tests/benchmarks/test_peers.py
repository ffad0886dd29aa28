"""The constraints that all systems are compared on, and what is made of their runs."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.peers.constrained import constraint_table, judge
from benchmarks.peers.tasks import TASKS, Potential
from twistlm.automata.automaton import Automaton
from twistlm.models import bundled

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"


@pytest.mark.parametrize("name", TASKS)
def test_every_system_reads_the_same_texts(name: str) -> None:
    """Python's `re`, which judges, and the automaton that samples here."""
    task = TASKS[name]
    automaton = Automaton.of_pattern(task.pattern)
    for text in (task.example, task.example + " ", task.example[1:], task.example[:-1], task.example.upper()):
        assert automaton.accepts(text) == task.satisfied(text), text
    assert task.satisfied(task.example)


def test_the_judge_of_all_systems() -> None:
    plain, both = Potential(TASKS["date"]), Potential(TASKS["json, positive"])
    assert plain.log_phi([" 2024-03-15", " 2024-3-15", ""]).tolist() == [0.0, -torch.inf, -torch.inf]
    good, bad = (
        json.dumps({"product": "Shoes", "stars": 1, "review": review}) for review in ("I love them!", "I hate them!")
    )
    log_phi = both.log_phi([good, bad, "neither"])
    assert log_phi[0] > log_phi[1] > log_phi[2] == -torch.inf


def row(system: str, Z: float, se: float, **extra: float) -> dict[str, object]:
    return {
        "system": system, "particles": 10, "runs": 4, "median_s": 2.0, "Z_hat_mean": Z, "Z_hat_se": se,
        "peak_mb": 1.0, "log_Z_hat_mean": math.log(Z) if Z else None,
        "extra_mean": {"satisfied": 1.0, "prepare_s": 1.0, **extra},
    }  # fmt: skip


def test_times_at_equal_error() -> None:
    """Four runs of relative spread 0.2 have an error of 0.1; best-of-N needs (1 − Z) / (Z 0.01) draws."""
    ours, other, best = row("twistlm", 0.01, 0.001, excess=5.0), row("other", 0.01, 0.002), row("best-of-N", 0.0, 0.0)
    for each in (ours, other, best):
        judge(each, ours)
    assert ours["seconds_to_tenth"] == pytest.approx(1.0 + 4 * 2.0)
    assert other["seconds_to_tenth"] == pytest.approx(1.0 + 16 * 2.0)
    assert best["seconds_to_tenth"] == pytest.approx(9900 / 10 * 2.0)
    assert ours["divergence"] == pytest.approx(5.0 + math.log(0.01))
    rare = {**row("rare", 0.01, 0.001), "log_Z_hat_mean": math.log(0.01) - 2.0}
    judge(rare, ours)
    assert rare["seconds_to_tenth"] == pytest.approx(1.0 + 100 * (math.exp(4.0) - 1) * 2.0)
    table = constraint_table([ours, other, best])
    assert len(table) == 5
    assert "3.7×" in table[3]
    assert "> 1,000,000" in constraint_table([ours, {**other, "seconds_to_tenth": 1e9}])[3]
    assert "none" in table[4]


@pytest.mark.nightly
def test_our_script_runs(tmp_path: Path) -> None:
    """On the bundled model, a run of four particles."""
    output = tmp_path / "out.json"
    arguments = ["--model", bundled.folder("stories"), "--task", "words", "--particles", "4", "--tokens", "20"]
    subprocess.run(
        [sys.executable, PEERS / "constraint_ours.py", *arguments, "--repeats", "2", "--json", output],
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}, check=True, capture_output=True,
    )  # fmt: skip
    record = json.loads(output.read_text())
    assert all(log_Z < 0 for log_Z in record["log_Z_hat"])
    assert all(extra["satisfied"] == 1.0 and extra["excess"] > 0 for extra in record["extra"])
