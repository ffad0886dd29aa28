"""The notebooks run as Jupyter would run them, at the size that they are committed with."""

from pathlib import Path

import nbclient
import nbformat
import pytest

pytestmark = pytest.mark.nightly

EXAMPLES = Path(__file__).parents[2] / "examples"


def _shown(output: dict) -> str:
    data = output.get("data", {})
    return output.get("text", "") + data.get("text/html", data.get("text/plain", ""))


def run(name: str) -> list[str]:
    """What each cell shows."""
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not committed: they would go stale"
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    return ["".join(map(_shown, cell.get("outputs", []))) for cell in notebook.cells]


def test_what_the_methods_write() -> None:
    shown = run("qualitative.ipynb")
    assert shown[3].count("to be followed by") == 2
    assert shown[5].count("label = ") == 5
    assert "beta = 10.0, num_tokens = 200" in shown[7]
    assert all("twisted SMC" in text for text in (shown[3], shown[5], shown[7]))


def test_red_team_a_chat_model(smollm2: Path) -> None:
    shown = run("red_team.ipynb")
    assert "smollm2" in shown[3]
    assert "1 in " in shown[5] or "no event" in shown[5]
    assert shown[5].count(" to ") >= 3


def test_controlled_generation() -> None:
    shown = run("controlled.ipynb")
    assert all("cat" in line for line in shown[3].splitlines()[1:])
    assert shown[5].count("<tr>") == 9
    assert "Certificate (nats" in shown[7]
    assert "log_Z_lower" in shown[8]


def test_audit_a_policy() -> None:
    shown = run("audit_policy.ipynb")
    assert [line.split(":")[0] for line in shown[5].splitlines()] == ["step 0", "step 2", "step 4"]
    assert "kl_q_target" in shown[6]
