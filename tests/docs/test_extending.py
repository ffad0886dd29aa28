"""What docs/extending.md shows works as it stands there."""

import re
from pathlib import Path

import pytest

from tests.forked import twistlm

pytestmark = pytest.mark.usefixtures("forks")
ROOT = Path(__file__).parents[2]


def test_the_file_and_its_laws_and_the_command_line(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "extending.md").read_text()
    parts, laws = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    commands = re.findall(r"^twistlm (.*)$", page, re.MULTILINE)
    assert len(commands) == 3
    (tmp_path / "mine.py").write_text(parts)
    (tmp_path / "laws.py").write_text(f"from mine import ShortWords\n{laws}")
    # Such a sweep is tested with the plugins.
    for command in ([], *(line.split() for line in commands[:2])):
        ended = twistlm(*command, cwd=tmp_path, script=None if command else tmp_path / "laws.py")
        assert ended.returncode == 0, ended.stderr
        assert "list" not in command or "Stories in short words." in ended.stdout
    assert (tmp_path / "runs" / "short" / "twist.safetensors").exists()
