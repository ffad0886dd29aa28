"""What is timed, by name, on one model.

| name | what it does |
|---|---|
| `generate` | transformers' own sampling with its cache: the baseline of everything |
| `base` | base sampling |
| `smc_TWIST` | SMC with this twist, resampling at every step |
| `never_TWIST` | the same without resampling |
| `LOSS_TWIST` | one update as the trainer does it: sampling, scores, backward, clipping, AdamW |
| `LOSS_TWIST:OPTIMISER` | the same with another optimiser |
| `certificate` | a certificate of the MLP twist: four runs each of IWAE and SMC, lower and upper |
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from benchmarks.suite.machine import MB, release
from benchmarks.suite.models import build, prompt_of, spread_twist
from benchmarks.suite.options import Batch
from twistlm.certificates.certify import certify
from twistlm.certificates.evidence import Evidence
from twistlm.certificates.spending import Spending
from twistlm.core.estimates import Estimate
from twistlm.core.rng import Rng
from twistlm.models.base import Prompts
from twistlm.models.huggingface import HuggingFaceLM
from twistlm.potentials.base import BasePotential
from twistlm.runs.experiments import get_preset
from twistlm.sampling.cases import Case
from twistlm.sampling.exact.budget import Budget
from twistlm.sampling.exact.collect import collect
from twistlm.sampling.particles import SMCResult
from twistlm.sampling.proposals import base
from twistlm.sampling.sampler import Sampler, WorkerContext
from twistlm.sampling.twisted import TwistedLM
from twistlm.training.losses import objective
from twistlm.training.sources import Setting
from twistlm.training.trainer import Trainer
from twistlm.twists.base import Twist
from twistlm.twists.sigmoid import probability

# Runs of IWAE and of SMC in a certificate.
RUNS = 4
# A warm-up makes so many tokens.
WARM_STEPS = 2


class Halves(BasePotential):
    """log φ = minus the share of tokens in the upper half of the vocabulary: next to free, and not constant."""

    log_upper_bound = 0.0

    def __init__(self, vocab_size: int) -> None:
        self.middle = vocab_size // 2

    def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """Between −1 and 0 [B]."""
        return -(tokens >= self.middle).double().mean(-1)


@dataclass(frozen=True)
class Task:
    """A piece of work.

    Attributes:
        run: does it; returns the mean effective sample size as a fraction of N, None where there are no weights.
        warm_up: does enough of it that a second run meets nothing for the first time.
    """

    run: Callable[[], float | None]
    warm_up: Callable[[], object]


class Bench:
    """One model in one precision. Twists are made when a task first asks for them."""

    def __init__(self, name: str, dtype: str, *, quick: bool = False, vocab_size: int | None = None) -> None:
        self.name = name
        self.model: Any = build(name, dtype, quick=quick, vocab_size=vocab_size)
        self.prompt = prompt_of(name, self.model, quick=quick)
        self._twists: list[Twist] = []
        self._shared: dict[str, Twist] = {}

    @cached_property
    def lm(self) -> HuggingFaceLM:
        """The package's view of the model."""
        return HuggingFaceLM(self.model, None, self.name)

    def forget_model(self) -> None:
        """Keep only what the package has taken of transformers' model, as loading by name does; no `generate` after."""
        _ = self.lm
        self.model = None
        release()

    @property
    def twist_mb(self) -> float | None:
        """Parameters of the twists that were made so far; None if none was."""
        parameters = [p for twist in self._twists for p in twist.module.parameters() if p.requires_grad]
        return sum(p.numel() * p.element_size() for p in parameters) / MB if parameters else None

    def task(self, name: str, batch: Batch) -> Task:
        """The task called `name` at this size."""
        kind, _, twist = name.partition("_")
        short = Batch(batch.particles, min(WARM_STEPS, batch.steps))
        if kind == "generate":
            return Task(lambda: self._generate(batch), lambda: self._generate(short))
        if kind == "base":
            return Task(lambda: self._base(batch), lambda: self._base(short))
        if kind in ("smc", "never"):
            model = TwistedLM(self.lm, self._twist(twist), "ignore")
            threshold = 1.0 if kind == "smc" else 0.0
            return Task(lambda: self._smc(model, batch, threshold), lambda: self._smc(model, short, threshold))
        if kind == "certificate":
            return self._certificate(batch)
        trainer = self.trainer(kind, twist, batch)
        return Task(lambda: _update(trainer), lambda: _update(trainer))

    def trainer(self, loss: str, twist: str, batch: Batch) -> Trainer:
        """A trainer with a twist of its own; `twist` may name an optimiser behind a colon."""
        twist, _, optimiser = twist.partition(":")
        made = self._new_twist(twist)
        model = TwistedLM(self.lm, probability(made) if objective(loss).probability else made, "ignore")
        setting = Setting(self._sampler(model, batch), [Case(self.prompt)])
        config = get_preset("toxicity", "small").config(loss)
        config = config.changed(num_particles=batch.particles, optimiser=optimiser or None)
        return Trainer(Rng(0), setting, config.training, _no_criterion)

    def _twist(self, kind: str) -> Twist:
        """The twist that every task but training shares."""
        if kind not in self._shared:
            self._shared[kind] = self._new_twist(kind)
        return self._shared[kind]

    def _new_twist(self, kind: str) -> Twist:
        twist = spread_twist(self.lm, kind, self.prompt)
        self._twists.append(twist)
        return twist

    def _generate(self, batch: Batch) -> None:
        prompts = self.prompt.expand(batch.particles, -1)
        made = self.model.generate(
            prompts, attention_mask=torch.ones_like(prompts), do_sample=True, top_k=0, use_cache=True,
            max_new_tokens=batch.steps,
        )  # fmt: skip
        if made.shape[1] != self.prompt.numel() + batch.steps:
            raise RuntimeError(f"generate made {made.shape[1] - self.prompt.numel()} tokens, not {batch.steps}")

    def _base(self, batch: Batch) -> None:
        plain = self._sampler(TwistedLM(self.lm, None, "ignore"), batch, 0.0)
        replace(plain, proposal=base).smc(Rng(0), [Case(self.prompt)], batch.particles)

    def _smc(self, model: TwistedLM, batch: Batch, threshold: float) -> float:
        sampler = self._sampler(model, batch, threshold)
        return _ess_fraction(sampler.smc(Rng(0), [Case(self.prompt)], batch.particles))

    def _sampler(self, model: TwistedLM, batch: Batch, threshold: float = 0.5) -> Sampler:
        return Sampler(model, Halves(self.lm.vocab_size), batch.steps, ess_threshold=threshold)

    def _certificate(self, batch: Batch) -> Task:
        model = TwistedLM(self.lm, self._twist("mlp"), "ignore")

        def made(batch: Batch, runs: int) -> Callable[[], float]:
            sampler, case = self._sampler(model, batch), Case(self.prompt)
            drawn = collect(
                Rng(0), WorkerContext(sampler, [case]), Budget(100 * runs, runs, 4 * runs), target="benchmark"
            )
            exact = drawn.exact.take(runs)
            n = batch.particles
            spending = Spending((n,), num_samples=runs * n, budget=runs * n)

            def run() -> float:
                certificate = certify(Rng(0), sampler, case, Evidence(exact), spending)
                for each in certificate.bounds:
                    if each.upper is None or (each.lower.n, each.upper.n) != (runs, runs):
                        raise RuntimeError(f"{each.method}: not {runs} runs of both bounds, but {each}")
                assert certificate.ess_fraction is not None
                return certificate.ess_fraction

            return run

        return Task(made(batch, RUNS), made(Batch(batch.particles, min(WARM_STEPS, batch.steps)), 2))


def _ess_fraction(result: SMCResult) -> float:
    """Mean over steps and runs of ESS / N, after weighting and before resampling."""
    return float(torch.stack([info.ess for info in result.infos]).mean()) / result.particles.log_w.shape[1]


def _update(trainer: Trainer) -> float | None:
    ess = float(trainer._update()["ess"])
    # Losses without target samples have no weights towards the target.
    return None if math.isnan(ess) else ess / trainer.config.num_particles


def _no_criterion(rng: Rng, sampler: Sampler) -> Estimate:
    raise RuntimeError("single updates are timed, without looks at a criterion")
