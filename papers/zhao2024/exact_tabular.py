"""A target with everything known: every method on a tabular model, its divergences estimated and by enumeration.

    python -m papers.zhao2024.exact_tabular        # a minute; writes papers/zhao2024/exact_tabular.json

V = 5, T = 4; log ψ is a table too, so nothing limits a method but its own way of learning.
"""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import tyro

from papers.zhao2024.comparison import compared
from papers.zhao2024.settings import HERE
from twistlm.certificates.certify import certify
from twistlm.certificates.evidence import Evidence
from twistlm.certificates.spending import Spending
from twistlm.core.rng import Rng
from twistlm.core.storage import save_json
from twistlm.models.tabular import TabularLM
from twistlm.potentials import Function
from twistlm.runs.experiments.methods import METHODS
from twistlm.sampling.cases import Case
from twistlm.sampling.exact.budget import Budget
from twistlm.sampling.exact.collect import collect
from twistlm.sampling.sampler import Sampler, WorkerContext
from twistlm.sampling.twisted import TwistedLM
from twistlm.testing import Enumeration
from twistlm.training.config import TrainingConfig, training_sources
from twistlm.training.criteria import negative_lower_bound
from twistlm.training.losses import objective
from twistlm.training.sources import Setting
from twistlm.training.trainer import Trainer
from twistlm.twists.sigmoid import probability
from twistlm.twists.tabular import TabularHead

VOCAB, STEPS = 5, 4
PROMPT = torch.tensor([1])


@dataclass(frozen=True)
class Options:
    """What to compare.

    Attributes:
        seeds: of every method.
        updates: of every run.
        file: what was found.
    """

    seeds: int = 5
    updates: int = 256
    file: Path = HERE / "exact_tabular.json"


def rising(texts: list[str]) -> list[float]:
    """log φ: each digit that is below its predecessor costs a nat and a half."""
    return [-1.5 * sum(b < a for a, b in pairwise(text)) for text in texts]


def run(method: str, seed: int, updates: int) -> dict[str, Any]:
    """Train, certify, enumerate."""
    lm = TabularLM.random(VOCAB, STEPS + len(PROMPT), seed=7)
    potential = Function(rising, log_upper_bound=0.0).bind(lm)
    plain = TwistedLM(lm, None, "ignore")
    twist = TabularHead.twist(torch.zeros_like(lm.table))
    model = TwistedLM(lm, probability(twist) if objective(method).probability else twist, "ignore")
    sampler, case = Sampler(model, potential, STEPS), Case(PROMPT)
    sources: dict[str, Any] = {**training_sources(SOURCES.get(method, "proposal"), method)}
    config = TrainingConfig(
        loss=method,
        num_particles=100,
        num_updates=updates,
        learning_rate=0.03,
        weight_decay=0.0,
        betas=(0.9, 0.999),
        patience=None,
        shrinkages=(),
        **sources,
    )
    Trainer(Rng(seed, (method,)), Setting(sampler, [case]), config, negative_lower_bound([case])).train()
    exact = collect(
        Rng(seed, ("exact",)), WorkerContext(sampler, [case]), Budget(100_000, 2000, 4000), target="tabular"
    ).exact
    certificate = certify(
        Rng(seed, ("certificate",)), sampler, case, Evidence(exact), Spending((16, 64), num_samples=2000, budget=4000)
    )
    truth = Enumeration.of(plain, potential, PROMPT, STEPS)
    exactly = {
        "kl_q_target": truth.kl_q_target(model),
        "kl_target_q": truth.kl_target_q(model),
        "log_Z": float(truth.log_Z),
    }
    return {"method": method, "seed": seed, **compared(exactly, certificate)}


# Where a method's samples come from, if not from the proposal.
SOURCES = {"gkl": "pool"}


def main(options: Options) -> None:
    """Every method with every seed."""
    rows = []
    for method in METHODS:
        for seed in range(options.seeds):
            rows.append(run(method, seed, options.updates))
            print(json.dumps(rows[-1]), flush=True)
    save_json(options.file, {"updates": options.updates, "runs": rows})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
