"""What a certificate says of KL(σ‖q) with few exact samples and with many, and what exact samples cost.

python -m docs.recorded.explain_exact_samples     # after the run of explain-smc.py; a minute
"""

from dataclasses import replace
from typing import Any

from docs.recorded.explain_common import DRAWS, RUNS, interval, write
from twistlm import Run
from twistlm.certificates.certify import certify
from twistlm.certificates.evidence import Evidence, acceptance
from twistlm.certificates.spending import Spending
from twistlm.core.rng import Rng

SEED, COUNTS, SAMPLES = 1, (0, 2, 5, 10, 19, 20, 30, 50, 100, 200, 400), 1024


def main() -> None:
    """The same certificate with a part of the exact samples."""
    run = Run.load(RUNS / "gkl")
    evaluation = run.fold("evaluation")
    assert evaluation is not None
    case, rng = run.target.cases[0], Rng(SEED, ("explain-exact-samples",))
    sampler = run.sampler()
    drawn = sampler.draw(rng.fork("samples"), [case], SAMPLES)
    found: list[dict[str, Any]] = []
    for count in [n for n in COUNTS if n <= len(evaluation.exact)]:
        exact = evaluation.exact.take(count) if count else None
        known = replace(Evidence(exact), witnesses=run.witnesses)
        of = certify(
            rng.fork("certify"), sampler, case, known, Spending((16,), SAMPLES, methods=("iwae",)), drawn=drawn
        )
        found.append({
            "exact": count, "kl_q_target": interval(of.divergences.kl_q_target),
            "kl_target_q": interval(of.divergences.kl_target_q), "log_Z": interval(of.divergences.log_Z),
            "upper": interval(of.log_Z_upper),
        })  # fmt: skip
    collection = run.target.draws(DRAWS)
    write("explain-exact-samples", SEED, {
        "draws": len(collection.draws), "accepted": int(collection.accepted.sum()),
        "acceptance": interval(acceptance(collection)), "by_count": found,
    })  # fmt: skip


if __name__ == "__main__":
    main()
