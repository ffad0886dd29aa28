"""How far several methods get with so many draws: certificates on the way of the runs that choose/method.md names.

python -m docs.recorded.choose_draws     # reads the run folders; seconds
"""

import json
from typing import Any

from docs.recorded.explain_common import RUNS, interval, write
from twistlm.runs.folder import RunFolder
from twistlm.runs.folder.history import History

METHODS = ("ctl", "dpg", "gkl")


def main() -> None:
    """Read every run that is there."""
    write("choose-draws", 0, {"methods": {name: curve(name) for name in METHODS if (RUNS / name).exists()}})


def curve(name: str) -> dict[str, Any]:
    """Both KLs after each number of draws, by the certificates that training made on the way."""
    folder = RunFolder.open(RUNS / name)
    history = History.of(folder.metrics(), RUNS / name)
    asked = json.loads((RUNS / name / "config.json").read_text())["run"]["training"]
    size = asked["num_particles"]
    rows = [
        {"draws": at * size, "kl_q_target": interval(each.divergences.kl_q_target),
         "kl_target_q": interval(each.divergences.kl_target_q)}
        for at, each in sorted(history.certificates.items())
    ]  # fmt: skip
    return {"curve": rows, "update_seconds": sum(history.seconds), "updates": len(history.seconds)}


if __name__ == "__main__":
    main()
