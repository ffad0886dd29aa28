"""How far masked decoding is from what it should sample, and the twist of a constraint too: exactly, by enumeration.

    python -m benchmarks.masking                       # the bundled model; a minute
    python -m benchmarks.masking --model smollm2       # the packaged one; texts of two to four tokens, some minutes

Every text that satisfies a small constraint, in all its tokenizations, is scored by the model, so that log Z, the
target, the distribution of masked decoding (p₀ over the tokens that keep the constraint possible, as other tools draw)
and that of the twist are known. What certificates say of log Z stands beside it: the bound that holds for certain after
so many draws, and the interval of `twistlm probability`. Written to benchmarks/masking.json.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

from twistlm import Target
from twistlm.automata.tokens import TokenAutomaton
from twistlm.certificates.effort import Search
from twistlm.certificates.rare_events import probability
from twistlm.core.errors import NoneAcceptedError
from twistlm.core.rng import Rng
from twistlm.potentials import Regex
from twistlm.potentials.constraint import compiled, constraints_in
from twistlm.sampling.explored import Explored
from twistlm.sampling.proposals import base, twist_induced
from twistlm.sampling.samples import Samples
from twistlm.sampling.twisted import TwistedLM
from twistlm.twists import automaton as twists

RESULTS = Path(__file__).parent / "masking.json"
CASES = {
    "stories": (
        ("Once upon a time, there was a", r" (little|big|old|brave|sad) (girl|boy|dog|cat|man|bird)\.", 5),
        (
            "Lily was very sad because she",
            " (lost|broke|missed|wanted) her (toy|mom|favorite toy|blue ball|friend)[.!]",
            6,
        ),
        ("Tom saw the", " (dog|cat|bird|sun|park|tree) (and|in|on) the (dog|cat|bird|sun|park|tree)[.]", 6),
    ),
    "smollm2": (
        ("The capital of France is", " (Paris|London|Rome|a city|the city)", 2),
        ("The meeting takes place on", " (Monday|Tuesday|Friday|the first|March [1-9])", 3),
        ("My favourite colour is", r" (red|green|blue|black|dark blue|light green)[.!]", 3),
        ("The answer is", r" [1-9][0-9]?[.]", 4),
    ),
}
# Sequences that are scored at a time, and runs of SMC with so many particles each.
BATCH, RUNS, PARTICLES, DRAWS = 256, 20, 16, 1024


@dataclass(frozen=True)
class Options:
    """What is asked.

    Attributes:
        model: a registered name or a folder.
        output: file of the results; those of other models stay.
    """

    model: str = "stories"
    output: Path = RESULTS


def sequences(automaton: TokenAutomaton, num_tokens: int, eos: int | None) -> Tensor:
    """All sequences of tokens [n, T] that satisfy a constraint, EOS after the end of a text."""
    possible = twists.completions(automaton, num_tokens, torch.ones(automaton.following.shape)).isfinite()
    found: list[tuple[list[int], int]] = [([], 0)]
    for t in range(num_tokens):
        longer = []
        for tokens, state in found:
            if state == automaton.ended:
                assert eos is not None
                longer.append(([*tokens, eos], state))
                continue
            after = automaton.following[state][automaton.token_class]
            allowed = possible[t + 1][after].nonzero().flatten().tolist()
            longer += [([*tokens, token], int(after[token])) for token in allowed]
        found = longer
    return torch.tensor([tokens for tokens, _ in found])


def measure(model: str, prompt: str, pattern: str, num_tokens: int) -> dict[str, object]:
    """Divergences from the target, in nats, and how well SMC knows log Z."""
    of = Target(model, Regex(pattern, mode="fullmatch", constrain=True), prompt, num_tokens, dtype="float32")
    automaton = compiled(constraints_in(of.potential), of.lm)
    tokens = sequences(automaton, num_tokens, of.lm.eos_token_id)
    plain = of.twisted().base
    rows = [_samples(plain, of.prompt_tokens, part) for part in tokens.split(BATCH)]
    log_p = torch.cat([plain.densities(part, base).log_p.sum(-1) for part in rows])
    log_Z = torch.logsumexp(log_p, 0)
    log_sigma = log_p - log_Z
    assert of.constraint is not None
    table = Explored(of.constraint, torch.float32, bounds=False).twist
    mask = Explored(of.constraint, torch.float32, bounds=True).twist
    found: dict[str, object] = {"prompt": prompt, "pattern": pattern, "sequences": len(tokens), "log_Z": float(log_Z)}
    for name, twist in (("masked", mask), ("table", table), ("twist", of.constraint)):
        constrained = plain.constrained(twist)
        log_q = torch.cat([constrained.densities(part, twist_induced).log_q.sum(-1) for part in rows])
        found[name] = {
            "kl_target_q": float((log_sigma.exp() * (log_sigma - log_q)).sum()),
            "kl_q_target": float((log_q.exp() * (log_q - log_sigma)).sum()),
            "total_variation": float((log_q.exp() - log_sigma.exp()).abs().sum() / 2),
        }
    estimates = torch.cat([of.sampler().smc(Rng(k), of.cases, PARTICLES).log_Z_hat for k in range(RUNS)])
    found["smc"] = {
        "particles": PARTICLES,
        "runs": RUNS,
        "log_Z_hat": float(torch.logsumexp(estimates, 0) - math.log(RUNS)),
        "sd": float(estimates.std()),
    }
    found["probability"] = _bounds(of)
    return found


def _bounds(of: Target) -> dict[str, object]:
    """What is said of Z after `DRAWS` draws of every kind, most of them exact by then."""
    try:
        collection = of.collect(Rng(0), max_draws=DRAWS)
    except NoneAcceptedError as error:
        collection = error.collection
    (said,) = probability(of, [0.5], search=Search(num_draws=DRAWS, num_samples=DRAWS, num_events=0))
    return {
        "draws": DRAWS,
        "log_most": collection.log_most_of(of.cases[0]),
        "accepted": float(collection.accepted.double().mean()),
        "log_interval": [math.log(max(said.value.low, 1e-300)), math.log(said.value.high)],
    }


def _samples(model: TwistedLM, prompt: Tensor, tokens: Tensor) -> Samples:
    zeros = torch.zeros(tokens.shape, dtype=torch.float64)
    return Samples([prompt] * len(tokens), tokens, model.mask(tokens), zeros, zeros, zeros[:, 0])


def main(options: Options) -> None:
    """Measure, print, write."""
    kept = json.loads(options.output.read_text()) if options.output.exists() else {}
    kept[options.model] = []
    for case in CASES["smollm2" if options.model == "smollm2" else "stories"]:
        found = measure(options.model, *case)
        print(json.dumps(found, indent=1), flush=True)
        kept[options.model].append(found)
        options.output.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
