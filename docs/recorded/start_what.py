"""What the demo's run drew and certified, for the figure that says what twistlm is.

    make demo                                # a minute; into runs/demo
    python -m docs.recorded.start_what       # seconds; writes docs/recorded/start-what.json
"""

from pathlib import Path
from typing import Any

import torch
from docs.recorded.explain_common import write
from torch import Tensor

from twistlm import Run
from twistlm.core.rng import Rng
from twistlm.core.storage import load_json, load_lines

FOLDER = Path("runs/demo")
SEED, DRAWS, TEXTS = 0, 4096, 3
# Edges of the histogram over φ, in powers of ten.
EDGES = [k / 4 for k in range(-16, 1)]


def main() -> None:
    """Read the run, and draw from its proposal."""
    run = Run.load(FOLDER)
    assert run.collection is not None and run.folder is not None
    base = run.collection.draws.log_phi
    proposed = run.sampler().draw(Rng(SEED, ("start-what",)), run.target.cases, DRAWS).log_phi
    certificates = load_json(run.folder.certificate)
    samples = {name: [row["text"] for row in load_lines(path)][:TEXTS]
               for name, path in (("base", FOLDER / "base_samples.jsonl"), ("twisted", FOLDER / "samples.jsonl"))}  # fmt: skip
    write("start-what", SEED, {
        "made_by": "make demo", "prompt": str(run.target.prompts.entries[0]), "num_tokens": run.target.num_tokens,
        "edges": EDGES,
        "base": histogram(base, torch.zeros_like(base)), "target": histogram(base, base),
        "twisted": histogram(proposed, torch.zeros_like(proposed)), "num_base": len(base), "num_twisted": DRAWS,
        "samples": samples,
        "certificates": {name: told(certificates[name]) for name in ("before", "after")},
    })  # fmt: skip


def histogram(log_phi: Tensor, log_weights: Tensor) -> list[float]:
    """The share of the weight in each bin; what is beyond the ends is in the first and the last."""
    at = (log_phi / torch.log(torch.tensor(10.0))).clamp(EDGES[0], EDGES[-1] - 1e-9).double()
    found = torch.histogram(at, torch.tensor(EDGES, dtype=torch.float64), weight=log_weights.softmax(0).double())
    return found.hist.tolist()


def told(certificate: dict[str, Any]) -> dict[str, Any]:
    """What the figure shows of a certificate: value, low and high of each number, and the sandwiches."""
    def ends(each: dict[str, float] | None) -> list[float] | None:
        return None if each is None else [each["value"], each["low"], each["high"]]

    bounds = [
        {"num_particles": row["num_particles"], "lower": ends(row["lower"]), "upper": ends(row["upper"])}
        for row in certificate["bounds"] if row["method"] == "iwae"
    ]  # fmt: skip
    return {name: ends(certificate[name]) for name in ("log_Z", "kl_q_target", "kl_target_q", "phi")} | {"bounds": bounds}


if __name__ == "__main__":
    main()
