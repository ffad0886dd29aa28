"""The notebook runs as Jupyter would run it."""

from pathlib import Path

import nbclient
import nbformat

NOTEBOOK = Path(__file__).parents[2] / "examples" / "qualitative.ipynb"


def _text(output: dict) -> str:
    return output.get("text", "") + output.get("data", {}).get("text/plain", "")


def test_it_runs_in_its_smallest_size_and_shows_every_experiment() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not committed: they would go stale"
    assert 'PRESET = "smoke"' in notebook.cells[1].source
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    shown = ["".join(map(_text, cell.get("outputs", []))) for cell in notebook.cells]
    assert shown[3].count("to be followed by") == 4
    assert shown[5].count("label = ") == 5
    assert "beta = 10.0, num_tokens = 200" in shown[7]
    assert all("twisted SMC, 64 particles" in text for text in (shown[3], shown[5], shown[7]))
