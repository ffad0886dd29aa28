"""How pictures look and are saved: colour is never alone, markers and line styles say the same."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from twistlm.core.storage import write_atomically
from twistlm.report.charts import COLOURS

# Text stays text in a PDF.
matplotlib.rcParams["pdf.fonttype"] = 42

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)), (0, (8, 2)))


def look(index: int) -> dict[str, Any]:
    """Colour, marker and line style of the series with this number."""
    k = index % len(COLOURS)
    return {"color": COLOURS[k], "marker": MARKERS[k], "linestyle": LINES[k], "markersize": 5}


def save(figure: Any, path: Path) -> None:
    """Write the figure, whose format is that of the name, and close it. Equal pictures are equal files."""
    metadata = {"CreationDate": None} if path.suffix == ".pdf" else None
    kind = path.suffix.removeprefix(".")
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150, format=kind, metadata=metadata))
    plt.close(figure)
