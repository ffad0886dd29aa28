"""Kills by -9 and by SIGTERM, at the default number of threads: two every day, a hundred over all commands at night."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kills import COMMANDS


@pytest.mark.parametrize(
    ("commands", "kills"), [(["train"], 2), pytest.param([*COMMANDS], 100, marks=pytest.mark.nightly)]
)
def test_a_command_that_is_killed_and_given_again_ends_as_if_nothing_had_been(commands: list[str], kills: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["OMP_WAIT_POLICY"] = "PASSIVE"
    done = subprocess.run(
        [sys.executable, "-m", "tests.kills", *commands, "--kills", str(kills), "--signals", "KILL,TERM"],
        cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, timeout=3600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    threads, *said = done.stdout.splitlines()
    for line, command in zip(said, commands, strict=False):
        assert line.startswith(f"{command}: ")
        assert " kills, 0 files differ" in line
    if (os.cpu_count() or 1) > 1:
        assert int(threads.split()[0]) > 1, "one thread cannot show what several do"
