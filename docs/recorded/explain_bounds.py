"""Both bounds on log Z against the number of particles, of the base model and of a trained twist, on one target.

python -m docs.recorded.explain_bounds     # after the run of explain-smc.py; minutes; writes explain-bounds.json
"""

from typing import Any

from docs.recorded.explain_common import RUNS, interval, write
from twistlm import Run
from twistlm.certificates.certificate import Certificate

SEED, PARTICLES, SAMPLES, BUDGET = 1, (1, 2, 4, 8, 16, 32, 64), 1024, 1024


def main() -> None:
    """Certify twice on the same exact samples."""
    run = Run.load(RUNS / "gkl")
    asked = {"num_particles": PARTICLES, "num_samples": SAMPLES, "budget": BUDGET, "seed": SEED}
    write("explain-bounds", SEED, {
        "target": "sentiment, preset small", "before": told(run.evaluate(before=True, **asked)),
        "after": told(run.evaluate(**asked)),
    })  # fmt: skip


def told(certificate: Certificate) -> dict[str, Any]:
    """What of a certificate is drawn."""
    of = certificate.divergences
    return {
        "log_Z": interval(of.log_Z), "kl_q_target": interval(of.kl_q_target), "kl_target_q": interval(of.kl_target_q),
        "exact_samples": 0 if of.g is None else of.g.n, "sequences": certificate.num_sequences,
        "bounds": [
            {
                "method": each.method, "num_particles": each.num_particles, "lower": interval(each.lower),
                "upper": interval(each.upper), "runs": each.lower.n,
            }
            for each in certificate.bounds
        ],
    }  # fmt: skip


if __name__ == "__main__":
    main()
