"""How many particles: the spread and the bias of log Ẑ against N / exp(KL(σ‖q)), where log Z is a sum.

    python -m docs.recorded.choose_particles     # seconds; writes docs/recorded/choose-particles.json

The targets are those of `make coverage`: 2,048 texts, four potentials, Z from a half to one in ten thousand. The
proposals are the base model and one that has learned (coverage.md), importance sampling without resampling.
"""

import math
from statistics import median
from typing import Any

import torch

from benchmarks.interval_coverage import LEVELS, POTENTIALS, Cell, World
from docs.recorded.explain_common import write
from twistlm.core.logmath import log_mean_exp
from twistlm.core.rng import Rng

SEED, PARTICLES, REPEATS = 0, tuple(2**k for k in range(13)), 200


def main() -> None:
    """Every target, every N."""
    worlds = [
        measured(Cell(potential, level, "default", proposal))
        for potential in POTENTIALS
        for level in LEVELS
        for proposal in ("base", "trained")
    ]
    write("choose-particles", SEED, {
        "particles": list(PARTICLES), "repeats": REPEATS, "summary": [summary(worlds, at) for at in (1, 3, 10, 100)],
        "worlds": worlds,
    })  # fmt: skip


def summary(worlds: list[dict[str, Any]], at: float) -> dict[str, Any]:
    """Least, middle and greatest gap and spread at N = `at` · exp(KL(σ‖q)), but where φ is 1 or 1e-16 under p₀."""
    found: dict[str, list[float]] = {"gap": [], "spread": []}
    for world in worlds:
        place = math.log2(at) + world["kl_target_q"] / math.log(2)
        if (world["potential"], world["proposal"]) == ("two-valued", "base") or place > len(PARTICLES) - 1:
            continue
        k = min(int(place), len(PARTICLES) - 2)
        for name, values in found.items():
            values.append(world[name][k] + (place - k) * (world[name][k + 1] - world[name][k]))
    three = {name: [min(values), median(values), max(values)] for name, values in found.items()}
    return {"multiple": at, "targets": len(found["gap"]), **three}


def measured(cell: Cell) -> dict[str, Any]:
    """Mean of log Ẑ − log Z, and its standard deviation, for each number of particles."""
    world = World.of(cell)
    ratios = world.log_p + world.log_phi - world.log_q - world.log_Z
    cumulative = world.log_q.exp().cumsum(0)
    rng = Rng(SEED, ("choose-particles", cell.potential, str(cell.level), cell.proposal))
    gap, spread = [], []
    for n in PARTICLES:
        points = rng.fork(n).uniform((REPEATS, n)) * cumulative[-1]
        chosen = torch.searchsorted(cumulative, points, right=True).clamp_max(len(ratios) - 1)
        errors = log_mean_exp(ratios[chosen])
        gap.append(float(-errors.mean()))
        spread.append(float(errors.std()))
    second = float(torch.logsumexp(world.log_q + 2 * ratios, 0))
    return {
        "potential": cell.potential, "level": cell.level, "proposal": cell.proposal,
        "kl_target_q": world.truth["KL(σ‖q)"], "kl_q_target": world.truth["KL(q‖σ)"],
        "log_second_moment": second, "gap": gap, "spread": spread,
    }  # fmt: skip


if __name__ == "__main__":
    main()
