"""Two real raylets on this machine, of which a worker and a machine are killed. `python -m tests.cluster` does more."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.nightly


def test_a_collection_survives_losing_a_worker_and_a_machine() -> None:
    words = [sys.executable, "-m", "tests.cluster", "collect", "--faults", "2", "--kinds", "worker", "machine"]
    told = subprocess.run(words, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=600)
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.count("0 files differ") == 2
