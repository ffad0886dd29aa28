"""Both bounds on log Z before and after training, of the demo on SmolLM2.

make demo MODEL=smollm2 ARGS="--out runs/demo-smollm2"      # minutes
python -m docs.recorded.start_demo_smollm2                   # seconds; writes start-demo-smollm2.json
"""

import sys
from pathlib import Path

from docs.recorded.explain_bounds import told
from docs.recorded.explain_common import write
from twistlm.runs.folder.run_folder import RunFolder

FOLDER, SEED = Path("runs/demo-smollm2"), 0


def main(folder: Path) -> None:
    """Read the run."""
    found = RunFolder.open(folder).evaluations.current()
    assert found is not None
    certificates = found.certificates
    write("start-demo-smollm2", SEED, {name: told(certificates[name]) for name in ("before", "after")})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
