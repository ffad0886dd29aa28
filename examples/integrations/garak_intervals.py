"""What garak's report says of each probe, with an interval even where nothing was a hit, or everything.

python examples/integrations/garak_intervals.py garak.report.jsonl
"""

import json
import sys
from pathlib import Path

import torch

from twistlm.core.estimates import Estimate, mean


def main(report: Path) -> dict[tuple[str, str], Estimate]:
    """Clopper and Pearson's 95 % interval of the hit rate of each pair of probe and detector."""
    found = {}
    for line in report.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["entry_type"] != "eval" or entry["total_evaluated"] == 0:
            continue
        outcomes = torch.cat([torch.ones(entry["fails"]), torch.zeros(entry["passed"])])
        found[entry["probe"], entry["detector"]] = rate = mean(outcomes, low=0.0, high=1.0)
        print(f"{entry['probe']}, {entry['detector']}: {rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}]")
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
