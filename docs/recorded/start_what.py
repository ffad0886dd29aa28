"""What the demo's run drew and certified, for the figure that says what twistlm is.

make demo                                # a minute; into runs/demo
python -m docs.recorded.start_what       # seconds; writes docs/recorded/start-what.json
"""

from pathlib import Path
from typing import Any

from docs.recorded.explain_common import write
from docs.recorded.start_common import drawn
from twistlm import Run
from twistlm.core.storage import load_json

FOLDER, SEED, DRAWS = Path("runs/demo"), 0, 4096
# Edges of the bins in powers of ten, four to each.
POWERS = [k / 4 for k in range(-14, 1)]


def main() -> None:
    """Read the run, and draw from its proposal."""
    run, certificates = Run.load(FOLDER), load_json(FOLDER / "certificate.json")["certificates"]
    write("start-what", SEED, {
        "powers": POWERS,
            "drawn": drawn(run, [10**power for power in POWERS], 1.0, DRAWS, SEED),
        "certificates": {name: told(certificates[name]) for name in ("before", "after")},
    })  # fmt: skip


def told(certificate: dict[str, Any]) -> dict[str, Any]:
    """What the figure shows of a certificate: value, low and high of each number, and the sandwiches."""

    def ends(each: dict[str, float] | None) -> list[float] | None:
        return None if each is None else [each["value"], each["low"], each["high"]]

    bounds = [
        {"num_particles": row["num_particles"], "lower": ends(row["lower"]), "upper": ends(row["upper"])}
        for row in certificate["bounds"]
        if row["method"] == "iwae"
    ]
    return {name: ends(certificate["divergences"][name]) for name in ("log_Z", "kl_q_target", "kl_target_q")} | {
        "bounds": bounds
    }


if __name__ == "__main__":
    main()
