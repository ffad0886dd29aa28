"""Infilling of two tokens before one, estimated and exact: both divergences by summing over all pairs of tokens.

    python -m papers.zhao2024.exact_infilling      # after the sweep infilling-2-1 of `methods`; twenty minutes

First tokens that together have less than 1e-4 of p₀ are left out. The conditions are draws of p₀, so that is what σ
loses on average; what q loses is computed. Writes papers/zhao2024/exact_infilling.json.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from papers.zhao2024.comparison import compared
from papers.zhao2024.settings import HERE
from twistlm import Run
from twistlm.core.progress import bar
from twistlm.core.storage import save_json
from twistlm.models.base import BaseLM
from twistlm.runs.sweeps.folder import SweepFolder
from twistlm.runs.sweeps.pooled import read
from twistlm.sampling.states import beside
from twistlm.sampling.twisted import TwistedLM

LEFT_OUT = 1e-4


@dataclass(frozen=True)
class Options:
    """What to compare.

    Attributes:
        sweep: of infilling with two tokens before one.
        conditions: so many of the evaluation's.
        file: what was found.
    """

    sweep: Path = Path("runs/results/infilling-2-1")
    conditions: int = 12
    file: Path = HERE / "exact_infilling.json"


@dataclass(frozen=True)
class Pairs:
    """p₀ of every pair with one of n first tokens, and of m conditions after it.

    Attributes:
        prompt: what comes before.
        firsts: [n].
        hidden: the base model's state before the first token [1, d] and after each of `firsts` [n, d].
        log_p: log p₀(s₁), [V], and log p₀(s₂ | s₁), [n, V].
        log_phi: log p₀(c | s₁, s₂) [m, n, V].
    """

    prompt: Tensor
    firsts: Tensor
    hidden: tuple[Tensor, Tensor]
    log_p: tuple[Tensor, Tensor]
    log_phi: Tensor

    @property
    def log_joint(self) -> Tensor:
        """log p₀(s₁, s₂) [n, V]."""
        return self.log_p[0][self.firsts].unsqueeze(-1) + self.log_p[1]


@torch.no_grad()
def all_pairs(lm: BaseLM, prompt: Tensor, conditions: Tensor, left_out: float = LEFT_OUT) -> Pairs:
    """The pairs whose first tokens have all but `left_out` of p₀, with log φ of conditions [m]."""
    every = torch.arange(lm.vocab_size)
    start = lm.start([prompt]).features
    first = lm.logits(start)[0].double().log_softmax(-1)
    order = first.argsort(descending=True)
    kept = first[order].exp().cumsum(0) < 1 - left_out
    firsts = order[: int(kept.sum()) + 1]
    hidden, second, log_phi = [], [], []
    with bar("pairs of tokens", len(firsts)) as report:
        for done, token in enumerate(firsts):
            state = lm.advance(lm.start([prompt], (len(every), 2)), torch.tensor([0]), token.view(1))
            hidden.append(state.features)
            second.append(lm.logits(state.features).double().log_softmax(-1))
            whole = lm.advance(state, torch.zeros_like(every), every)
            log_phi.append(lm.logits(whole.features).float().log_softmax(-1)[:, conditions].T)
            report(done + 1, "")
    return Pairs(prompt, firsts, (start, torch.cat(hidden)), (first, torch.cat(second)), torch.stack(log_phi, 1))


@torch.no_grad()
def divergences(model: TwistedLM, pairs: Pairs, conditions: Tensor) -> dict[str, Tensor]:
    """KL(q‖σ), KL(σ‖q), log Z and q's mass that was left out, for each of conditions [m]."""
    twist = model.twist
    assert twist is not None
    assert twist.reader is not None
    terms: dict[str, list[Tensor]] = {"kl_q_target": [], "kl_target_q": [], "log_Z": [], "left_out": []}
    for condition, log_phi in zip(conditions, pairs.log_phi, strict=True):
        given = twist.reader(condition.view(1, 1))
        at_start, after = (twist.head(beside(h, given.expand(len(h), -1))).double() for h in pairs.hidden)
        first = (pairs.log_p[0] + at_start[0]).log_softmax(-1)[pairs.firsts]
        log_q = first.unsqueeze(-1) + (pairs.log_p[1] + after).log_softmax(-1)
        joint = pairs.log_joint + log_phi
        log_Z = joint.logsumexp((0, 1))
        ratio = log_q - (joint - log_Z)
        terms["kl_q_target"].append((log_q.exp() * ratio).sum())
        terms["kl_target_q"].append(-((joint - log_Z).exp() * ratio).sum())
        terms["log_Z"].append(log_Z)
        terms["left_out"].append(1 - first.exp().sum())
    return {name: torch.stack(values) for name, values in terms.items()}


def compare(run: Run, pairs: Pairs, conditions: Tensor, seed: int) -> dict[str, Any]:
    """Both divergences of one run, exact and estimated with the run's own settings on the same conditions."""
    exact = divergences(run.model, pairs, conditions)
    most = max(run.config.evaluation.num_particles)
    certificate = run.evaluate(num_samples=len(conditions), budget=most * len(conditions), seed=seed, save=False)
    return compared({name: float(values.mean()) for name, values in exact.items()}, certificate)


def main(options: Options) -> None:
    """Compare every finished run of the sweep."""
    folder, rows = SweepFolder.open(options.sweep), []
    pairs = conditions = None
    for result in read(options.sweep).results:
        run = Run.load(folder.run(result.cell).path)
        evaluation = run.fold("evaluation")
        assert evaluation is not None
        if pairs is None or conditions is None:
            given = evaluation.exact.take(options.conditions).samples.conditions
            assert given is not None
            conditions = given.squeeze(-1)
            pairs = all_pairs(run.target.lm, run.target.prompt_tokens, conditions)
        row = {"method": result.cell.method, "seed": result.cell.seed, **compare(run, pairs, conditions, 1)}
        print(json.dumps(row), flush=True)
        rows.append(row)
    save_json(options.file, {"conditions": options.conditions, "left_out": LEFT_OUT, "runs": rows})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
