"""A rare event of the bundled model whose probability is known exactly: what `probability` finds, and what it takes.

    python -m benchmarks.rare                     # 5 seeds with the default settings; minutes each on one core

The event: each of the first four of eight tokens after "Once upon a time, there was a" is one of six that are unlikely
there. The model itself says how likely that is: the sum over all 6⁴ ways to begin. The score counts how many of the
four are, so that the climb has levels to go by. Writes benchmarks/rare.json.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

import twistlm
from twistlm.certificates.effort import Search
from twistlm.certificates.probability import plain_tokens
from twistlm.core.estimates import Estimate
from twistlm.core.storage import as_json, save_json
from twistlm.models.base import BaseLM, Prompts
from twistlm.models.huggingface import load
from twistlm.potentials import Function

PROMPT, NUM_TOKENS, NUM_GIVEN = "Once upon a time, there was a", 8, 4
# Tokens of the bundled model, all of them words.
WORDS = (" dog", " cat", " and", " the", " was", " a")
# Within which counting is to know P, by a 95 % interval.
FACTOR = 1.5


@dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        seeds: how many, 0 and on.
        num_draws: of a round; by default that of `twistlm probability`.
        rounds: at most; by default likewise.
        out: where the figures go.
    """

    seeds: int = 5
    num_draws: int | None = None
    rounds: int | None = None
    out: Path = Path("benchmarks/rare.json")


def exact(lm: BaseLM, allowed: list[int]) -> float:
    """P[the first tokens are all allowed]: the sum over every way to begin.

    Read token by token, as draws are: on processors with products of lower precision another way to read rounds
    otherwise, and a product of four rare tokens shows it (by 3 % on one with AMX).
    """
    state, choices = lm.start([lm.encode(PROMPT)], (len(allowed) ** NUM_GIVEN, NUM_GIVEN)), torch.tensor(allowed)
    log_p = torch.zeros(1, dtype=torch.float64)
    for step in range(NUM_GIVEN):
        following = lm.logits(state.features).double().log_softmax(-1)[:, choices]
        parents, tokens = torch.arange(len(log_p)).repeat_interleave(len(choices)), choices.repeat(len(log_p))
        log_p = (log_p.unsqueeze(1) + following).flatten()
        if step + 1 < NUM_GIVEN:
            state = lm.advance(state, parents, tokens)
    return float(torch.logsumexp(log_p, 0).exp())


def main(options: Options) -> None:
    """Every seed, printed as it comes and saved."""
    lm = load("stories")
    allowed = [int(lm.encode(word)[-1]) for word in WORDS]
    known = torch.tensor(allowed)

    def score(prompts: Prompts, tokens: torch.Tensor) -> torch.Tensor:
        return torch.isin(tokens[:, :NUM_GIVEN], known).sum(-1).double() - NUM_GIVEN

    truth = exact(lm, allowed)
    print(f"exact: {truth:.4g}", flush=True)
    target = twistlm.Target(lm, Function(score, on="tokens", log_upper_bound=0.0), PROMPT, NUM_TOKENS, eos="ignore")
    asked: dict[str, Any] = {"num_draws": options.num_draws, "max_rounds": options.rounds}
    search = replace(Search(), **{name: value for name, value in asked.items() if value is not None})
    counting = plain_tokens(Estimate(truth, truth / FACTOR, truth * FACTOR, 0), NUM_TOKENS)
    runs = []
    for seed in range(options.seeds):
        start = time.perf_counter()
        (found,) = twistlm.probability(target, [1.0], search=search, seed=seed)
        runs.append(
            {
                "seed": seed,
                "value": as_json(found.value),
                "seen": as_json(found.seen),
                "tokens": found.num_tokens,
                "share_of_counting": found.num_tokens / counting,
                "seconds": time.perf_counter() - start,
            }
        )
        print(runs[-1], flush=True)
    save_json(options.out, {"exact": truth, "factor": FACTOR, "runs": runs})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
