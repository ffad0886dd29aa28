"""Ten kills by -9 and ten SIGTERMs over all commands, at the default number of threads; `make kill` does a hundred."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("commands", "kills"), [(["train", "prompts", "collect", "certify"], 16), (["probability", "sweep"], 4)]
)
def test_a_command_that_is_killed_and_given_again_ends_as_if_nothing_had_been(commands: list[str], kills: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["OMP_WAIT_POLICY"] = "PASSIVE"
    done = subprocess.run(
        [sys.executable, "-m", "tests.kills", *commands, "--kills", str(kills), "--signals", "KILL,TERM"],
        cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    threads, *said = done.stdout.splitlines()
    each = kills // len(commands)
    for line, command in zip(said, commands, strict=False):
        assert line.startswith(f"{command}: {each} kills, 0 files differ")
    if (os.cpu_count() or 1) > 1:
        assert int(threads.split()[0]) > 1, "one thread cannot show what several do"
