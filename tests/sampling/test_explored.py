"""Values of prefixes that were drawn, against exact enumeration."""

import math

import pytest
import torch

from tests.constrained import PATTERNS, full, target, truth
from twistlm.automata.automaton import Automaton
from twistlm.automata.tokens import TokenAutomaton
from twistlm.core.rng import Rng
from twistlm.potentials.constraint import compiled, constraints_in
from twistlm.sampling.explored import Explored
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.samples import Samples
from twistlm.sampling.twisted import TwistedLM
from twistlm.twists import automaton as twists


@pytest.mark.parametrize("pattern", PATTERNS)
def test_beginnings_that_were_drawn_are_known(pattern: str) -> None:
    """The more draws, the nearer q is to σ; at every moment it is positive where σ is, and there alone."""
    of = target(full(pattern), num_tokens=4)
    exact = truth(of)
    explored = Explored(twists.build(compiled(constraints_in(of.potential), of.lm), 4), torch.float64, bounds=False)
    distances = []
    for number in range(8):
        model = TwistedLM(of.lm, None, of.eos, constraint=explored.twist)
        log_q = exact.log_q(model)
        assert torch.equal(log_q.isfinite(), exact.log_sigma.isfinite())
        distances.append(exact.kl_target_q(model))
        sampler = Sampler(model, None, 4, ess_threshold=0.0)
        explored.learn(sampler.draw_at_once(Rng(number), of.cases, 32), 0.0)
    assert distances[-1] < 0.02
    assert explored.log_value(of.prompt_tokens) == pytest.approx(float(exact.log_Z), abs=0.02)


def test_what_the_table_thinks_nothing_of_is_found() -> None:
    """With and without a share of q for what was not drawn, where the table says that a second 0 never comes."""
    of = target(full("(11|00)[01]{2}"), num_tokens=4)
    exact, automaton = truth(of), compiled(constraints_in(of.potential), of.lm)
    wrong = torch.ones(automaton.following.shape)
    wrong[:, automaton.token_class[0]] = 1e-9

    def found(explored: Explored) -> float:
        for number in range(24):
            model = TwistedLM(of.lm, None, of.eos, constraint=explored.twist)
            drawn = Sampler(model, None, 4, ess_threshold=0.0).draw_at_once(Rng(number), of.cases, 32)
            explored.learn(drawn, 0.0)
        return explored.log_value(of.prompt_tokens)

    kept, lost = (Explored(twists.build(automaton, 4, wrong), torch.float64, bounds=False) for _ in range(2))
    lost.undrawn = 0.0
    assert found(lost) < float(exact.log_Z) - 0.5
    assert found(kept) == pytest.approx(float(exact.log_Z), abs=0.02)
    # What is left to be drawn has its share at every moment, and what was drawn is known as exactly as before.
    model = TwistedLM(of.lm, None, of.eos, constraint=kept.twist)
    assert exact.kl_target_q(model) < 0.01


def test_values_smaller_than_any_number() -> None:
    """A text of 300 tokens, each of which the model makes a thousandth as likely, is worth e⁻²⁰⁷²."""
    automaton = TokenAutomaton.of(Automaton.of_pattern("a{300}"), [b"a", b"b"], ())
    thousandth = torch.full(automaton.following.shape, 1e-3, dtype=torch.float64)
    explored = Explored(twists.build(automaton, 300, thousandth), torch.float64, bounds=False)
    prompt, tokens = torch.tensor([1]), torch.zeros((2, 300), dtype=torch.long)
    everywhere = torch.ones((2, 300), dtype=torch.float64)
    log_p = everywhere * torch.tensor(2e-3, dtype=torch.float64).log()
    drawn = Samples([prompt] * 2, tokens, everywhere.bool(), log_p, 0 * everywhere, torch.zeros(2).double())
    before = explored.log_value(prompt)
    explored.learn(drawn, 0.0)
    assert before == pytest.approx(300 * math.log(1e-3))
    # Twice as likely at each token as the table had it.
    assert explored.log_value(prompt) == pytest.approx(300 * math.log(2e-3))
    assert explored.twist.decoder is not None
    features = explored.twist.decoder.features([prompt] * 2, tokens)
    assert bool(explored.twist.head.gather(features, tokens).isfinite().all())
