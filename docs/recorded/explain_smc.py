"""One run of SMC with 16 particles step by step, what the twist does to the next token, and Ẑ of many runs.

    twistlm collect sentiment --preset small --num-draws 20480 --num-samples 5000 \
        --out runs/explain/sentiment.safetensors
    twistlm train sentiment --preset small --method gkl --informed auto \
        --draws runs/explain/sentiment.safetensors --out runs/explain/gkl
    python -m docs.recorded.explain_smc     # a minute; writes docs/recorded/explain-smc.json
"""

from dataclasses import replace
from typing import Any

import torch

from docs.recorded.explain_common import RUNS, interval, write
from twistlm import Run
from twistlm.core.logmath import log_mean_exp
from twistlm.core.rng import Rng
from twistlm.sampling.cases import Case

SEED, PARTICLES, REPEATS = 0, 16, 128
# The default is 0.5, which this target hardly ever reaches with so few particles.
ESS_THRESHOLD = 0.9
# Beginnings after which the next token is shown, and how many tokens each way.
BEGINNINGS, SHOWN = ("", " and it was"), 6


def main() -> None:
    """Run, look, write."""
    run = Run.load(RUNS / "gkl")
    drawn = run.sample(PARTICLES, seed=SEED, ess_threshold=ESS_THRESHOLD)
    smc = drawn.diagnostics
    assert smc is not None
    tree = smc.genealogy
    log_Z = run.evaluate(num_particles=(16,), methods=("iwae",)).divergences.log_Z
    write("explain-smc", SEED, {
        "prompt": str(run.target.prompts.entries[0]),
        "log_Z": interval(log_Z), "log_Z_hat": drawn.log_Z_hat, "num_particles": PARTICLES,
        "parents": tree.parents.tolist(), "pieces": tree.pieces, "weights": tree.log_w.exp().tolist(),
        "ess": smc.ess[0].tolist(), "resampled": smc.resampled[0].tolist(),
        "survives": tree.survives.tolist(), "texts": drawn.texts, "final_weights": drawn.weights.tolist(),
        "phi": drawn.log_phi.exp().tolist(), "ess_threshold": ESS_THRESHOLD,
        "next": [following(run, beginning) for beginning in BEGINNINGS], "many": many(run, log_Z.value),
    })  # fmt: skip


def following(run: Run, beginning: str) -> dict[str, Any]:
    """p₀ and q of the next token after a beginning: what the twist raises and lowers most."""
    target, lm = run.target, run.target.lm
    prefix = lm.encode(str(target.prompts.entries[0]) + beginning)
    found = run.model.next(run.model.start([prefix], 1))
    assert found.log_psi is not None
    log_p, log_psi = found.logits[0].double().log_softmax(-1), found.log_psi[0].double()
    p, q = log_p.exp(), (log_p + log_psi).softmax(-1)
    order = [*(q - p).topk(SHOWN).indices.tolist(), *(p - q).topk(SHOWN).indices.tolist()[::-1]]
    return {
        "prefix": beginning, "pieces": lm.decode(torch.tensor(order).split(1)), "p": p[order].tolist(),
        "q": q[order].tolist(), "total_variation": float((p - q).abs().sum() / 2),
    }  # fmt: skip


def many(run: Run, log_Z: float) -> dict[str, Any]:
    """log Ẑ of independent runs of each sampler, and the mean of Ẑ / Z with twice its standard error."""
    samplers = {
        "base model": run.sampler(before=True),
        "twist, never resampling": replace(run.sampler(), ess_threshold=0.0),
        "twist, SMC": run.sampler(),
    }
    cases: list[Case] = [run.target.cases[0]] * REPEATS
    found = {}
    for name, sampler in samplers.items():
        values = torch.cat([
            sampler.smc(Rng(SEED, ("explain-smc", name, str(at))), cases[at : at + 32], PARTICLES).log_Z_hat
            for at in range(0, REPEATS, 32)
        ])  # fmt: skip
        ratios = (values - log_Z).exp()
        found[name] = {
            "log_Z_hat": values.tolist(), "mean": float(values.mean()), "sd": float(values.std()),
            "log_mean": float(log_mean_exp(values)), "ratio": float(ratios.mean()),
            "ratio_error": float(1.96 * ratios.std() / REPEATS**0.5),
        }  # fmt: skip
    return found


if __name__ == "__main__":
    main()
