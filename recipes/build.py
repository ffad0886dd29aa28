"""Rebuild a bundled model from packages alone: every step of its recipe, then its card.

make recipe NAME=stories       # or toxicity, sentiment (with stars), rates, all
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
STEPS = {
    "corpus": ("corpus",),
    "stories": ("corpus", "stories", "hashes", "check_stories"),
    "toxicity": ("corpus", "toxicity", "hashes", "check_toxicity"),
    "sentiment": ("corpus", "sentiment", "hashes"),
    "rates": ("check_rates",),
    "cards": (),
}
# Steps that have nothing left to do are over in seconds.
STEPS["all"] = tuple(step for name in ("stories", "toxicity", "sentiment", "rates") for step in STEPS[name])

if __name__ == "__main__":
    wanted = sys.argv[1] if len(sys.argv) == 2 else ""
    if wanted not in STEPS:
        sys.exit(f"NAME must be one of {', '.join(STEPS)}, not {wanted!r}")
    for step in (*STEPS[wanted], "cards"):
        print(f"recipes/{step}.py", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, HERE / f"{step}.py"], check=True)
