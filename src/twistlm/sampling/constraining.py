"""The exact twist of a target's hard constraints, with a proxy of p₀ that draws have shown."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from twistlm.automata.tokens import TokenAutomaton
from twistlm.core.rng import Rng
from twistlm.models.base import BaseLM
from twistlm.potentials.constraint import compiled, constraints_in
from twistlm.potentials.protocol import Potential
from twistlm.sampling.cases import Cases
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.samples import Samples
from twistlm.sampling.smc import Keep
from twistlm.sampling.twisted import TwistedLM
from twistlm.twists import automaton as twists
from twistlm.twists.base import Twist

# Rounds of so many draws, over so many prompts at most: each is made with what the ones before have shown.
ROUNDS, DRAWS, PROMPTS = 2, 64, 8


def constraint_twist(lm: BaseLM, potential: Potential, cases: Cases, num_tokens: int, eos: str) -> Twist | None:
    """ψ of the constraints in φ that samplers are to keep to; None if there are none.

    The draws that its proxy of p₀ rests on are always the same.

    Raises:
        ConfigError: the constraints cannot be met at all, or not within so many tokens.
    """
    constraints = constraints_in(potential)
    if not constraints:
        return None
    automaton, rng = compiled(constraints, lm), Rng(0, ("constraint",))
    build = partial(twists.build, automaton, num_tokens, absorbing=eos == "absorb")
    twist = build()
    counts = torch.zeros(automaton.following.shape, dtype=torch.float64)
    some = cases[:PROMPTS]
    for number in range(ROUNDS):
        how: dict[str, Any] = {"potential": None, "num_steps": num_tokens, "ess_threshold": 0.0}
        sampler = Sampler(TwistedLM(lm, None, eos, constraint=twist), **how)
        drawn = sampler.draw_at_once(rng.fork(number), some, max(1, DRAWS // len(some)), keep=Keep(features=True))
        counts += _seen(lm, automaton, drawn)
        overall = counts.sum(0) / counts.sum()
        twist = build(twists.smoothed(counts, overall))
    return twist


def _seen(lm: BaseLM, automaton: TokenAutomaton, drawn: Samples) -> Tensor:
    """Σ p₀(class | prefix) over the prefixes in each state, float64 [S + 2, C]."""
    num_states, num_classes = automaton.following.shape
    counts = torch.zeros((num_states, num_classes), dtype=torch.float64)
    assert drawn.features is not None
    states, token_class = automaton.walk(drawn.tokens)[:, :-1], automaton.token_class
    # One step of all sequences at a time: [B, V].
    for t in range(drawn.tokens.shape[1]):
        on = drawn.mask[:, t]
        if not bool(on.any()):
            continue
        p = torch.softmax(lm.logits(drawn.features[on, t]).float(), -1).cpu()
        by_class = torch.zeros((len(p), num_classes)).index_add_(1, token_class, p)
        counts.index_add_(0, states[on.cpu(), t], by_class.double())
    return counts
