"""A few kills of every command, at the default number of threads; `make kill` does twenty of each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("command", ["train", "prompts", "collect", "probability", "sweep"])
def test_a_command_that_is_killed_and_given_again_ends_as_if_nothing_had_been(command: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["OMP_WAIT_POLICY"] = "PASSIVE"
    done = subprocess.run(
        [sys.executable, "-m", "tests.kills", "--kills", "3", command], cwd=Path(__file__).parents[2], env=environment,
        capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    threads, said, *_ = done.stdout.splitlines()
    assert said.startswith(f"{command}: 3 kills, 0 files differ")
    if (os.cpu_count() or 1) > 1:
        assert int(threads.split()[0]) > 1, "one thread cannot show what several do"
