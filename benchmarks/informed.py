"""Is resampling worth it? The spread of log Ẑ without it, by a run's twist alone, and by what weighs beside it.

    python -m benchmarks.informed runs/demo runs/toxic        # runs of `twistlm train`; into benchmarks/informed.json

At N particles the same proposal draws in all three cases: "iwae" never resamples, "twist" resamples on what the twist
says of a prefix, "informed" on what was fitted beside it (here, if training was told not to, as in sweeps), both where
ESS is at most N/2. A target that differs by its condition is looked at for eight conditions, and spreads are the root
mean square over them.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from twistlm.core.rng import Rng
from twistlm.core.storage import load_json, save_json
from twistlm.runs.run import Run
from twistlm.sampling.cases import Case
from twistlm.sampling.sampler import Sampler, in_batches
from twistlm.training.informing import inform

CONDITIONS = 8


@dataclass(frozen=True)
class Options:
    """What to look at.

    Attributes:
        runs: folders.
        particles: N of SMC.
        sequences: drawn for each N in each case; at least 64 runs of SMC.
        seed: of everything random.
        output: file of the results; what else is in it stays.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    particles: tuple[int, ...] = (4, 16, 64)
    sequences: int = 3200
    seed: int = 0
    output: Path = Path("benchmarks/informed.json")


def main(options: Options) -> None:
    """Look at every run, and say what was seen."""
    found: dict[str, Any] = load_json(options.output) if options.output.exists() else {}
    for folder in options.runs:
        run = Run.load(folder)
        evaluation = run.fold("evaluation")
        conditional = run.sampler().is_conditional
        assert evaluation is not None
        if run.informed is None:
            run.informed, _ = inform(Rng(options.seed, ("inform",)), run.sampler(), run.training_cases)
        # Of a sweep's run, also which method's and which sweep's it is.
        name = "/".join(folder.parts[-3:]) if folder.name.startswith("seed-") else folder.name
        cases = evaluation.exact.cases[:CONDITIONS] if conditional else [run.target.cases[0]]
        samplers = {
            "iwae": run.sampler(ess_threshold=0.0),
            "twist": run.sampler(informed=False),
            "informed": run.sampler(ess_threshold=0.5),
        }
        rows: dict[str, Any] = {"steps": list(run.informed.steps), "coefficients": run.informed.coefficients.tolist()}
        for count in options.particles:
            rows[str(count)] = {
                how: _spread(Rng(options.seed, (how, count)), sampler, cases, count, options.sequences)
                for how, sampler in samplers.items()
            }
            base = rows[str(count)]["iwae"]["sd"]
            shown = ", ".join(
                f"{how} {each['mean']:.2f} ± {each['sd']:.2f} ({each['sd'] / base:.2f})"
                for how, each in rows[str(count)].items()
            )
            print(f"{name}, N = {count}: {shown}", flush=True)
        found[name] = rows
        save_json(options.output, found)


def _spread(rng: Rng, sampler: Sampler, cases: list[Case], num_particles: int, sequences: int) -> dict[str, float]:
    """Mean of log Ẑ and its standard deviation, over runs at each case; and seconds for a run."""
    repeats = max(64, sequences // num_particles) // len(cases)
    start, values = time.perf_counter(), []
    for at, some in in_batches([case for case in cases for _ in range(repeats)], num_particles, 2048):
        values.append(sampler.smc(rng.fork(at), some, num_particles).log_Z_hat)
    by_case: Tensor = torch.cat(values).view(len(cases), repeats)
    seconds = (time.perf_counter() - start) / by_case.numel()
    return {
        "mean": float(by_case.mean()),
        "sd": float(by_case.var(1).mean().sqrt()),
        "runs": by_case.numel(),
        "seconds": seconds,
    }


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
