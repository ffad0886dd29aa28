"""Does one twist for a set of prompts serve prompts that it never saw? SmolLM2-135M-Instruct, toxic answers to chats.

    python -m benchmarks.transfer                 # an hour on two busy cores, resumable; into benchmarks/transfer.json
    python -m benchmarks.transfer --held-out 4 --alone 1 --draws 16 --judging 16      # minutes, to see that it runs

Forty of the package's chat requests are set aside for good. On draws of the others one twist is trained (of several
candidates the one that its own held-out prompts prefer), and both divergences at the forty are compared with the base
model's, on the same exact samples and draws. Then at ten of the forty a twist is trained alone, on as many draws as
each prompt had, from nothing and from the shared twist.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from twistlm.certificates.certificate import Certificate
from twistlm.certificates.over_prompts import certify_prompts
from twistlm.certificates.spending import Spending
from twistlm.core.estimates import Estimate, mean
from twistlm.core.rng import Rng
from twistlm.core.storage import as_json, save_json
from twistlm.potentials import Jigsaw
from twistlm.runs.evidence import of_collection
from twistlm.runs.experiments.common import ON_DRAWS
from twistlm.runs.prompts import requests_file
from twistlm.runs.run import Run
from twistlm.runs.train import fine_tune, train
from twistlm.sampling.prompts import Prompts
from twistlm.sampling.sampler import Sampler, WorkerContext
from twistlm.sampling.smc import Keep
from twistlm.sampling.target import Target

TOKENS, CHUNK = 30, 512
# What is asked for: so much lower than the base model's.
WANTED = 0.25
CANDIDATES: dict[str, dict[str, Any]] = {
    "lexical-2": {"twist": "lexical", "twist_options": {"rank": 2}},
    "lexical-8": {"twist": "lexical", "twist_options": {"rank": 8}},
}
CONFIG = replace(
    ON_DRAWS,
    training=replace(
        ON_DRAWS.training,
        loss="gkl",
        # 32 draws of each of 128 prompts: with a quarter of that updates are noisier, and held-out prompts worse off.
        num_particles=4096,
        num_cases=128,
        num_updates=60,
        evaluate_every=5,
        evaluation_samples=0,
        patience=20,
        # Judged is the proposal, which nothing beside the twist changes.
        informed="off",
    ),
    folds=(0.9, 0.05, 0.05),
    num_siblings=0,
    max_held_out=512,
    chunk=CHUNK,
)
# Alone there are no other prompts to choose the twist by.
ALONE = replace(CONFIG, folds=(0.7, 0.25, 0.05), training=replace(CONFIG.training, num_particles=64, num_cases=1))


@dataclass(frozen=True)
class Options:
    """What to spend.

    Attributes:
        held_out: prompts set aside.
        alone: of those, how many get a twist of their own.
        draws: base draws for each prompt that trains.
        judging: base draws for each prompt set aside.
        samples: of q at each, for KL(q‖σ).
        seed: of everything random.
        runs: where draws and runs are kept.
        output: file of the results.
    """

    held_out: int = 40
    alone: int = 10
    draws: int = 48
    judging: int = 96
    samples: int = 32
    seed: int = 0
    runs: Path = Path("runs/transfer")
    output: Path = Path("benchmarks/transfer.json")


def main(options: Options) -> None:
    """Draw, train and judge, as far as it has not been done."""
    options.runs.mkdir(parents=True, exist_ok=True)
    every = Prompts.read(requests_file(), as_chat=True)
    order = Rng(options.seed, ("set aside",)).uniform((1, len(every)))[0].argsort().tolist()
    aside, others = (sorted(part) for part in (order[: options.held_out], order[options.held_out :]))
    seen, unseen = (
        Target("smollm2", Jigsaw(), prompts=every.select(part), num_tokens=TOKENS) for part in (others, aside)
    )
    runs = _train(seen, options)
    best = min(runs, key=lambda name: _held_out(runs[name]))
    print({name: round(_held_out(run), 3) for name, run in runs.items()}, "chosen:", best, flush=True)
    judge = _judge(unseen, options)
    # Of the judge's own target: a sampler's φ knows the chats that its own target has read.
    base, shared = (judge(unseen.sampler(twist), range(options.held_out)) for twist in (None, runs[best].model.twist))
    found: dict[str, Any] = {"options": {k: v for k, v in vars(options).items() if isinstance(v, int)}, "chosen": best}
    found["held_out_criterion"] = {name: _held_out(run) for name, run in runs.items()}
    found["unseen"] = _compared(base, shared)
    save_json(options.output, found)
    print(json.dumps(found["unseen"], indent=1), flush=True)
    few = range(options.alone)
    parts: dict[str, list[Certificate]] = {"alone": [], "fine_tuned": []}
    for number in few:
        target = unseen.at(unseen.prompts.select([number]))
        settings: dict[str, Any] = {**CANDIDATES[best], "num_draws": options.draws, "seed": options.seed}
        alone = train(target, config=ALONE, **settings)
        tuned = fine_tune(runs[best], unseen.prompts.entries[number], config=ALONE, **settings, learning_rate=3e-4)
        for name, run in (("alone", alone), ("fine_tuned", tuned)):
            parts[name].append(judge(unseen.sampler(run.model.twist), [number]))
        print(f"prompt {number + 1} of {options.alone}", flush=True)
    names = [unseen.prompts.names[number] for number in few]
    found["ten"] = {
        "base": _values(_only(base, names)),
        "shared": _values(_only(shared, names)),
        **{name: _values([each for one in made for each in one.by_prompt]) for name, made in parts.items()},
    }
    save_json(options.output, found)
    print(json.dumps(found["ten"], indent=1))


def _train(target: Target, options: Options) -> dict[str, Run]:
    """Every candidate, on the same draws."""
    draws, count = options.runs / "draws.safetensors", options.draws * len(target.prompts)
    target.collect(Rng(options.seed, ("training",)), max_draws=count, chunk=CHUNK, path=draws, keep=Keep(features=True))
    runs = {}
    for name, settings in CANDIDATES.items():
        folder = options.runs / name
        if (folder / "twist.safetensors").exists():
            runs[name] = Run.load(folder)
            continue
        begun = "resume" if folder.exists() else "refuse"
        asked = {**settings, "num_draws": count, "seed": options.seed}
        runs[name] = train(target, config=CONFIG, draws=draws, out=folder, exists=begun, **asked)
        print(name, round(_held_out(runs[name]), 3), flush=True)
    return runs


def _held_out(run: Run) -> float:
    return min(float(row["held_out"]["value"]) for row in run.history if row["kind"] == "evaluation")


def _judge(target: Target, options: Options) -> Callable[[Sampler, Sequence[int]], Certificate]:
    """Certificates of any sampler at some of the prompts set aside, by the same draws."""
    count = options.judging * len(target.prompts)
    rng, path = Rng(options.seed, ("judging",)), options.runs / "judging.safetensors"
    halves = target.collect(rng, max_draws=count, chunk=CHUNK, path=path).split((0.5, 0.5))
    evidence = of_collection(target.cases, halves[1], halves[:1])
    spending = Spending((4, 16), num_samples=options.samples, budget=options.samples, methods=("iwae",))

    def judge(sampler: Sampler, numbers: Sequence[int]) -> Certificate:
        cases, known = [target.cases[r] for r in numbers], [evidence[r] for r in numbers]
        names = [target.prompts.names[r] for r in numbers]
        return certify_prompts(rng.fork("samples"), WorkerContext(sampler, cases), names, known, spending)

    return judge


def _only(certificate: Certificate, names: Sequence[str]) -> list[Any]:
    return [each for each in certificate.by_prompt if each.name in names]


def _values(prompts: Sequence[Any]) -> dict[str, Any]:
    """The mean of both divergences over some prompts, and those of each."""
    q = [each.certificate.divergences.kl_q_target.value for each in prompts]
    sigma = [None if kl is None else kl.value for kl in (each.certificate.divergences.kl_target_q for each in prompts)]
    known = [value for value in sigma if value is not None]
    return {
        "kl_q_target": as_json(_mean(q)),
        "kl_target_q": as_json(_mean(known)) if known else None,
        "each": {each.name: [a, b] for each, a, b in zip(prompts, q, sigma, strict=True)},
    }


def _mean(values: Sequence[float]) -> Estimate:
    return mean(torch.tensor(values, dtype=torch.float64))


def _compared(base: Certificate, shared: Certificate) -> dict[str, Any]:
    """Both certificates, and by how much the twist is nearer, paired over prompts: log Z cancels, and much noise."""
    pairs = [
        (before.certificate.divergences, after.certificate.divergences)
        for before, after in zip(base.by_prompt, shared.by_prompt, strict=True)
    ]
    gains = {
        "kl_q_target": [(s.f.value - b.f.value, b.kl_q_target.value) for b, s in pairs],
        "kl_target_q": [
            (b.g.value - s.g.value, b.kl_target_q.value)
            for b, s in pairs
            if b.g is not None and s.g is not None and b.kl_target_q is not None
        ],
    }
    found: dict[str, Any] = {"base": _summary(base), "shared": _summary(shared)}
    for name, each in gains.items():
        gain, before = _mean([gain for gain, _ in each]), _mean([before for _, before in each])
        found[name] = {
            "gain": as_json(gain),
            # At the prompts that have both.
            "base": as_json(before),
            "share": gain.value / before.value,
            # Above 0 where the gain is more than the wanted share of what the base model lacks.
            "beyond_wanted": as_json(_mean([gain - WANTED * before for gain, before in each])),
        }
    return found


def _summary(certificate: Certificate) -> dict[str, Any]:
    fields = as_json(certificate.estimates)
    return {name: fields[name] for name in ("kl_q_target", "kl_target_q", "kl_q_prior", "log_Z", "phi", "acceptance")}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
