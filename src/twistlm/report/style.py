"""How pictures look and are saved: colour is never alone, markers and line styles say the same."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

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
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"CreationDate": None} if path.suffix == ".pdf" else None)
    plt.close(figure)
