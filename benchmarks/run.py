"""What sampling, training, certificates and memory cost, as ratios to transformers' own `generate`.

    python -m benchmarks.run                            # everything; over an hour on two cores
    python -m benchmarks.run --only sampling,memory     # some groups; the others' results stay
    python -m benchmarks.run --quick                    # seconds, tiny models: only shows that everything runs
    python -m benchmarks.run --check                    # exits with an error if a row is above its limit

Results are written after every case, so that a run that is stopped keeps what it has measured.
"""

import sys

import tyro

from benchmarks.suite.main import main
from benchmarks.suite.options import Options

if __name__ == "__main__":
    chosen = tyro.cli(Options, description=__doc__)
    measured = main(chosen)
    if chosen.check and not all(row.passed for row in measured.rows.values()):
        sys.exit("a row is above its limit")
