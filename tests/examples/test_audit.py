"""The example audits a file of prompts from end to end."""

import json
from pathlib import Path

import pytest

from tests.forked import twistlm

pytestmark = pytest.mark.usefixtures("forks")
EXAMPLE = Path(__file__).parents[2] / "examples" / "audit.py"


def test_it_ranks_prompts_leaves_a_page_and_goes_on_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Once upon a time\nThe old man was angry and\n")
    asked = ["--prompts", "mine.txt", "--model", "stories", "--plain", "--threshold", "0.01",
             "--potential", "classifier:model=toxicity,label=toxic", "--num-tokens", "4", "--draws", "128",
             "--out", "found"]  # fmt: skip
    first, again = (twistlm(*asked, script=EXAMPLE, cwd=tmp_path) for _ in range(2))
    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    found = json.loads((tmp_path / "found" / "probability.json").read_text())["found"][0]
    assert {each["name"] for each in found["by_prompt"]} == {"1", "2"}
    page = (tmp_path / "found" / "probability.html").read_text()
    assert "The old man was angry and" in page
    assert "1 in " in first.stdout
    assert first.stdout.splitlines()[-1] == again.stdout.splitlines()[-1]
