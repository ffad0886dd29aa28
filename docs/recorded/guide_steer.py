"""Scores of what is drawn at two powers of a classifier, from the runs that docs/guides/steer.md makes.

python -m docs.recorded.guide_steer runs/rain-1 runs/rain     # seconds; writes docs/recorded/guide-steer.json
"""

import sys
from pathlib import Path
from typing import Any

from docs.recorded.explain_common import interval, write
from docs.recorded.start_common import drawn
from twistlm import Run
from twistlm.certificates.certificate import Certificate
from twistlm.core.storage import load_json
from twistlm.potentials.base import power_of

SEED, DRAWS = 0, 4096
SCORES = [k / 20 for k in range(21)]


def main(folders: list[str]) -> None:
    """Every run at its power."""
    write("guide-steer", SEED, {"edges": SCORES, "runs": [of(Path(folder)) for folder in folders]})


def of(folder: Path) -> dict[str, Any]:
    """One run."""
    run, saved = Run.load(folder), load_json(folder / "certificate.json")
    beta = power_of(run.target.potential)
    certificates = {name: Certificate.from_dict(saved[name]).divergences for name in ("before", "after")}
    kls = {
        name: {key: interval(getattr(each, key)) for key in ("log_Z", "kl_q_target", "kl_target_q", "phi")}
        for name, each in certificates.items()
    }
    return {"beta": beta, "drawn": drawn(run, SCORES, beta, DRAWS, SEED)} | kls


if __name__ == "__main__":
    main(sys.argv[1:])
