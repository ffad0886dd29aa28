"""The exact twist of a target's hard constraints, with a proxy of p₀ that draws have shown."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from twistlm.automata.tokens import TokenAutomaton
from twistlm.core.errors import ConfigError
from twistlm.core.progress import bar
from twistlm.core.rng import Rng
from twistlm.models.base import BaseLM
from twistlm.potentials.constraint import compiled, constraints_in, contradicted
from twistlm.potentials.protocol import Potential
from twistlm.sampling.cases import Cases, prompts_of
from twistlm.sampling.explored import Explored, ExploredHead, precision
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.samples import Samples
from twistlm.sampling.smc import Keep
from twistlm.sampling.twisted import TwistedLM
from twistlm.twists import automaton as twists
from twistlm.twists.base import Twist
from twistlm.twists.grammar import unmasked

# Draws of each round, over so many prompts at most: first of the table, then of the beginnings of texts.
TABLE, BEGINNINGS, PROMPTS = (64, 64), (32, 32, 64, 128, 256), 8
# Further rounds like the last one follow until two have moved what is known of log Z by less than so many nats, or
# after so many.
SETTLED, MOST_ROUNDS = 0.05, 16


def possible(lm: BaseLM, potential: Potential, cases: Cases, num_tokens: int, eos: str) -> Twist | None:
    """ψ by the automaton of the constraints in φ alone: what they rule out, before any draw; None if there are none.

    Raises:
        ConfigError: the constraints cannot be met at all, or not within so many tokens.
    """
    constraints = constraints_in(potential)
    if not constraints:
        return None
    automaton = compiled(constraints, lm)
    return twists.build(automaton, num_tokens, absorbing=eos == "absorb", begin=automaton.begin(prompts_of(cases)))


def constraint_twist(lm: BaseLM, potential: Potential, cases: Cases, num_tokens: int, eos: str) -> Twist | None:
    """ψ of the constraints in φ that samplers are to keep to; None if there are none.

    Two rounds of draws show how likely each class of tokens is in each state of the automaton; further ones, what that
    table does not know of beginnings that are likely (`sampling.explored`), until nothing new is found. The draws are
    always the same.

    Raises:
        ConfigError: the constraints cannot be met at all, or not within so many tokens; or, where one is a grammar,
            no draw met them.
    """
    twist = possible(lm, potential, cases, num_tokens, eos)
    if twist is None:
        return None
    head = unmasked(twist).head
    assert isinstance(head, twists.AutomatonHead)
    automaton, rng, some = head.automaton, Rng(0, ("constraint",)), cases[:PROMPTS]
    begin = automaton.begin(prompts_of(cases))

    def drawn(name: str, number: int, twist: Twist, count: int, *, features: bool) -> Samples:
        model = TwistedLM(lm, None, eos, constraint=twist)
        sampler = Sampler(model, None, num_tokens, ess_threshold=0.0)
        each = max(1, count // len(some))
        return sampler.draw_at_once(rng.fork(name, number), some, each, keep=Keep(features=features))

    counts = torch.zeros(automaton.following.shape, dtype=torch.float64)
    for number, count in enumerate(TABLE):
        counts += _seen(lm, automaton, drawn("table", number, twist, count, features=True))
        shown = twists.smoothed(counts, counts.sum(0) / counts.sum())
        twist = twists.build(automaton, num_tokens, shown, absorbing=eos == "absorb", begin=begin)
    explored, found = Explored(twist, precision(lm, some[0].prompt), bounds=False), [-math.inf]
    # An automaton alone has said so before any draw.
    satisfied = not automaton.grammars
    with bar("finding what the constraint leaves likely", len(BEGINNINGS) + MOST_ROUNDS) as progress:
        for number in range(len(BEGINNINGS) + MOST_ROUNDS):
            count = BEGINNINGS[min(number, len(BEGINNINGS) - 1)]
            draws = drawn("beginnings", number, explored.twist, count, features=False)
            satisfied = satisfied or bool(automaton.satisfied(draws.tokens, automaton.begin(draws.prompts)).any())
            explored.learn(draws, 0.0)
            found.append(sum(explored.log_value(case.prompt) for case in some) / len(some))
            progress(number + 1, f"log Z about {found[-1]:.2f}")
            moved = [abs(after - before) for before, after in pairwise(found[-3:])]
            if number > len(BEGINNINGS) and max(moved) < SETTLED:
                break
    if not satisfied:
        raise ConfigError(contradicted(constraints_in(potential), explored.num_draws, num_tokens))
    explored.finish()
    return explored.twist


def num_fitted(twist: Twist) -> int:
    """Draws that the twist of a constraint was fitted to."""
    head = unmasked(twist).head
    assert isinstance(head, ExploredHead)
    return sum(TABLE) + head.explored.num_draws


def _seen(lm: BaseLM, automaton: TokenAutomaton, drawn: Samples) -> Tensor:
    """Σ p₀(class | prefix) over the prefixes in each state, float64 [S + 2, C]."""
    num_states, num_classes = automaton.following.shape
    counts = torch.zeros((num_states, num_classes), dtype=torch.float64)
    assert drawn.features is not None
    states, token_class = automaton.walk(drawn.tokens, automaton.begin(drawn.prompts))[:, :-1], automaton.token_class
    # One step of all sequences at a time: [B, V].
    for t in range(drawn.tokens.shape[1]):
        on = drawn.mask[:, t]
        if not bool(on.any()):
            continue
        p = torch.softmax(lm.logits(drawn.features[on, t]).float(), -1).cpu()
        by_class = torch.zeros((len(p), num_classes)).index_add_(1, token_class, p)
        counts.index_add_(0, states[on.cpu(), t], by_class.double())
    return counts
