"""Try bad invocations and damaged folders, half of each: `python -m tests.fuzz --cases 500 --seed 3`.

`--kind folders --only 17` is case 17 alone.
"""

import argparse
import collections
import shlex
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz import folders, harness, invocations

FURNISH = {"invocations": harness.furnish, "folders": folders.furnish}
RUN = {"invocations": invocations.run, "folders": folders.run}


def main() -> int:
    """Print what is wrong with any case, and how many there were of each exit code; 1 if any is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=tuple(RUN), help="one kind only")
    parser.add_argument("--only", type=int, help="this case alone")
    asked = parser.parse_args()
    harness.offline()
    kinds = list(RUN) if asked.kind is None else [asked.kind]
    since, wrong, total = time.monotonic(), 0, 0
    for kind in kinds:
        share = asked.cases // len(kinds)
        numbers = range(share) if asked.only is None else range(asked.only, asked.only + 1)
        wrong += attempt(kind, asked.seed, numbers)
        total += len(numbers)
    print(f"{total} cases, {wrong} wrong, {time.monotonic() - since:.0f} s")
    return 1 if wrong else 0


def attempt(kind: str, seed: int, numbers: range) -> int:
    """How many cases of a kind are wrong."""
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    wrong = 0
    with tempfile.TemporaryDirectory() as place:
        template = Path(place) / "template"
        FURNISH[kind](template)
        found = RUN[kind](seed, numbers, template, Path(place) / "work")
        for number, (case, outcome) in zip(numbers, found, strict=True):
            counts[case.command[0], str(outcome.code)] += 1
            if outcome.problems:
                wrong += 1
                shown = shlex.join(each[:100] for each in case.command)
                file = f", after damage to {case.file}" if isinstance(case, folders.Case) else ""
                print(f"--- {kind}, case {number} of seed {seed}: twistlm {shown!a}{file}: code {outcome.code}")
                print("\n".join(f"  {each!a}" for each in [*outcome.problems, outcome.said[-600:]]), flush=True)
    for (command, code), count in sorted(counts.items()):
        print(f"{kind}: {command:12} exit code {code}: {count}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
