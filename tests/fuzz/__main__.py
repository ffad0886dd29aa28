"""Try many bad invocations: `make fuzz ARGS="--cases 500 --seed 3"`, or one again by `--only NUMBER`."""

import argparse
import collections
import itertools
import shlex
import sys
import tempfile
import time
from pathlib import Path

from fuzz.harness import Workspace, furnish, offline
from fuzz.invocations import invocations


def main() -> int:
    """Print what is wrong with any case, and how many there were of each exit code; 1 if any is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this case alone")
    asked = parser.parse_args()
    first, last = (0, asked.cases) if asked.only is None else (asked.only, asked.only + 1)
    offline()
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    wrong, since = 0, time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        furnish(Path(place) / "template")
        workspace = Workspace(Path(place) / "template", Path(place) / "work")
        for number, case in itertools.islice(enumerate(invocations(asked.seed)), first, last):
            outcome = workspace.attempt(case.arguments, case.hopeless)
            counts[case.arguments[0], str(outcome.code)] += 1
            if outcome.problems:
                wrong += 1
                shown = " ".join(shlex.quote(each[:100]) for each in case.arguments)
                print(
                    f"--- case {number} (seed {asked.seed}): twistlm {shown!a}\n  exit code {outcome.code}", flush=True
                )
                for problem in outcome.problems:
                    print(f"  {problem!a}")
                print(f"  {outcome.said[-600:]!a}", flush=True)
            if asked.only is not None:
                print(f"exit code {outcome.code} after {outcome.seconds:.1f} s\n{outcome.said}")
    for (command, code), count in sorted(counts.items()):
        print(f"{command:12} exit code {code}: {count}")
    print(f"{last - first} cases, {wrong} wrong, {time.monotonic() - since:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
