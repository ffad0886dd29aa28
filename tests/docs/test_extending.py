"""What docs/extending.md shows works as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_file_and_its_laws_and_the_command_line(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "extending.md").read_text()
    parts, laws = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    commands = re.findall(r"^twistlm (.*)$", page, re.MULTILINE)
    assert len(commands) == 3
    (tmp_path / "mine.py").write_text(parts)
    (tmp_path / "laws.py").write_text(f"from mine import ShortWords\n{laws}")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TWISTLM_PROGRESS": "0"}
    # Such a sweep is tested with the plugins.
    for command in (["laws.py"], *(["-m", "twistlm", *line.split()] for line in commands[:2])):
        ended = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
        assert "list" not in command or "Stories in short words." in ended.stdout
    assert (tmp_path / "runs" / "short" / "twist.safetensors").exists()
