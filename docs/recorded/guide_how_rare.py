"""What `twistlm probability` found, beside a count of a million base draws (papers/zhao2024/rare_event.json).

python -m docs.recorded.guide_how_rare runs/rare     # the command is in docs/guides/how-rare.md; a second
"""

import sys
from pathlib import Path

from docs.recorded.explain_common import write
from twistlm.core.storage import load_json

COUNT = Path("papers/zhao2024/rare_event.json")


def main(folder: str) -> None:
    """Both intervals of each threshold, and the count's."""
    saved, counted = load_json(Path(folder) / "probability.json"), load_json(COUNT)["count"]
    rows = [
        {
            "threshold": each["threshold"],
            "value": ends(each["probability"]),
            "seen": None if each["seen"] is None else ends(each["seen"]),
            "num_draws": each["num_draws"],
            "num_tokens": each["num_tokens"],
            "counted": ends({"value": count["probability"], **count}),
        }
        for each in saved["found"]
        for count in [counted["events"][f"{each['threshold']:g}"]]
    ]
    write("guide-how-rare", saved["seed"], {"count_draws": counted["draws"], "found": rows})


def ends(estimate: dict[str, float]) -> list[float]:
    """Value, low and high per million."""
    return [1e6 * estimate[key] for key in ("value", "low", "high")]


if __name__ == "__main__":
    main(sys.argv[1])
