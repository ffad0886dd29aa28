"""The example writes valid records, and a certificate of them."""

import json
from pathlib import Path

import pytest

from tests.forked import twistlm

pytestmark = pytest.mark.usefixtures("forks")
EXAMPLE = Path(__file__).parents[2] / "examples" / "constrained.py"


def test_records_are_what_the_schema_says(tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "pattern": "^[a-z]{2,6}$"}, "old": {"type": "boolean"}},
        "required": ["name", "old"],
    }
    (tmp_path / "mine.json").write_text(json.dumps(schema))
    asked = ["--model", "stories", "--prompt", "Once upon a time", "--schema", "mine.json",
             "--num-tokens", "24", "--particles", "4", "--num-records", "5", "--out", "records.jsonl"]  # fmt: skip
    done = twistlm(*asked, script=EXAMPLE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert len(records) == 5
    for record in records:
        assert set(record) == {"name", "old"}
        assert record["name"].isascii()
        assert 2 <= len(record["name"]) <= 6
        assert record["old"] in (True, False)
    assert "log Z used" in done.stdout
