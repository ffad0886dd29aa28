"""Whoever does the work, the same bytes come out: the command line on the bundled models, all engines."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kills import content, differences

PROMPTS = str(Path(__file__).parents[2] / "prompts.txt")
SMALL = ["--num-tokens", "4"]
COMMANDS = {
    "collect": ["collect", "toxicity", "--preset", "smoke", *SMALL, "--prompts", PROMPTS, "--max-draws", "4000"],
    "probability": [
        *("probability", "--prompts", PROMPTS, "--potential", "classifier:model=toxicity,label=toxic", *SMALL),
        *("--thresholds", "0.05", "--num-draws", "768", "--max-rounds", "2", "--num-samples", "1200"),
    ],
}
ENGINES = {"here": [], "two processes": ["--jobs", "2"], "ray": ["--engine", "ray", "--jobs", "2"]}


@pytest.mark.parametrize("command", COMMANDS)
def test_all_engines_leave_the_same(command: str, tmp_path: Path) -> None:
    found = {}
    for name, options in ENGINES.items():
        out = tmp_path / name.replace(" ", "-") / ("draws.safetensors" if command == "collect" else "found")
        out.parent.mkdir()
        told = subprocess.run(
            [sys.executable, "-m", "twistlm", *COMMANDS[command], *options, "--out", str(out)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "TWISTLM_PROGRESS": "0"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert told.returncode == 0, told.stderr
        found[name] = content(out)
        # The page says when it was made.
        found[name].pop("probability.html", None)
    for name in ENGINES:
        assert differences(found["here"], found[name]) == [], name
