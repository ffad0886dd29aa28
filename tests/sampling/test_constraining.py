"""Hard constraints in the sampler, against exact enumeration."""

import itertools
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.constrained import EOS, PATTERNS, full, learned, target, truth
from twistlm import Target
from twistlm.core.errors import ConfigError
from twistlm.core.rng import Rng
from twistlm.models.tabular import TabularLM
from twistlm.potentials import Function, Length, Regex, Words
from twistlm.potentials.base import Potential
from twistlm.potentials.constraint import compiled, constraints_in
from twistlm.sampling.prompts import Prompts
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.twisted import IMPOSSIBLE, TwistedLM
from twistlm.testing import enumerate_paths
from twistlm.twists import automaton as twists


@pytest.mark.parametrize("eos", ["absorb", "ignore"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_nothing_dies_and_nothing_is_missed(pattern: str, eos: str) -> None:
    """q is positive where σ is and nowhere else, by the constraint alone and with a twist beside it."""
    of = target(full(pattern), eos=eos)
    exact = truth(of)
    assert bool(exact.log_sigma.isfinite().any())
    for model in (of.twisted(), learned(of)):
        log_q = exact.log_q(model)
        assert torch.equal(log_q.isfinite(), exact.log_sigma.isfinite())
        torch.testing.assert_close(log_q.exp().sum(), torch.tensor(1.0, dtype=torch.float64))
        for seed in range(3):
            result = Sampler(model, of.bound_potential, 3).smc(Rng(seed), of.cases, 8)
            assert bool(result.particles.log_w.isfinite().all())


@pytest.mark.parametrize("threshold", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("eos", ["absorb", "ignore"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_z_hat_is_exactly_unbiased(pattern: str, eos: str, threshold: float) -> None:
    of = target(full(pattern), num_tokens=3, eos=eos)
    for model in (of.twisted(), learned(of)):
        sampler = Sampler(model, of.bound_potential, 3, ess_threshold=threshold)
        paths = enumerate_paths(lambda rng, s=sampler: s.smc(rng, of.cases, 2).log_Z_hat.exp())  # type: ignore[misc]
        mean = sum(p * float(value) for p, value in paths)
        assert mean == pytest.approx(float(truth(of).log_Z.exp()), rel=1e-9)


def test_the_value_is_exact_where_the_proxy_is() -> None:
    """A model that draws every token alike has a table for a proxy, and no variance is left."""
    lm = TabularLM(torch.tensor([0.3, -0.4, 0.1], dtype=torch.float64).expand(40, 3), 4, EOS)
    for pattern, eos in itertools.product(PATTERNS, ("absorb", "ignore")):
        of = Target(lm, full(pattern), "1", 3, eos=eos)
        automaton = compiled(constraints_in(of.potential), lm)
        shown = torch.zeros(automaton.following.shape[1], dtype=torch.float64)
        shown.index_add_(0, automaton.token_class, torch.softmax(lm.table[0], -1))
        twist = twists.build(automaton, 3, shown.expand(automaton.following.shape), absorbing=eos == "absorb")
        sampler = Sampler(TwistedLM(lm, None, eos, constraint=twist), of.bound_potential, 3)
        log_Z = sampler.smc(Rng(0), of.cases, 5).log_Z_hat
        torch.testing.assert_close(log_Z, truth(of).log_Z.expand(1), rtol=0, atol=1e-6)
        # What draws have shown of it is the same.
        fitted = replace(sampler, model=of.twisted()).smc(Rng(0), of.cases, 5).log_Z_hat
        torch.testing.assert_close(fitted, truth(of).log_Z.expand(1), rtol=0, atol=0.05)


def test_the_proxy_that_was_drawn_is_better_than_none() -> None:
    """KL(σ‖q) by tokens alike, and by what draws have shown, over several models."""
    gains = []
    for seed in range(8):
        of = target(full("[01]{1,3}1"), num_tokens=4, seed=seed)
        exact = truth(of)
        blank = twists.build(compiled(constraints_in(of.potential), of.lm), 4)
        gains.append(
            exact.kl_target_q(TwistedLM(of.lm, None, of.eos, constraint=blank)) - exact.kl_target_q(of.twisted())
        )
    assert sum(gains) / len(gains) > 0.02


def test_scores_of_a_product() -> None:
    """log ψ and log Σ p₀ψ are those of both together, with a finite number for what is ruled out."""
    of = target(full("[01]*1"))
    model, exact = learned(of), truth(of)
    samples = exact.samples(model)
    scores = model.score(samples, normaliser=True)
    assert model.twist is not None
    assert model.constraint is not None
    assert model.constraint.decoder is not None
    states = model.constraint.decoder.features(samples.prompts, samples.tokens)
    log_psi = model.twist.head(model.twist_features(samples)) + model.constraint.head(states)
    log_p = torch.log_softmax(model.lm.logits(model.base_features(samples.prompts, samples.tokens)), -1)
    chosen = log_psi.gather(-1, samples.tokens.unsqueeze(-1)).squeeze(-1)
    possible = samples.mask & chosen.isfinite()
    torch.testing.assert_close(scores.log_psi[possible], chosen[possible])
    assert float(scores.log_psi.detach()[samples.mask & ~chosen.isfinite()].max()) < IMPOSSIBLE / 2
    assert scores.log_normaliser is not None
    assert bool(scores.log_normaliser.isfinite().all())
    expected = torch.logsumexp(log_p + log_psi, -1)
    alive = samples.mask & expected.isfinite()
    torch.testing.assert_close(scores.log_normaliser[alive], expected[alive], rtol=0, atol=1e-5)
    scores.log_psi.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.twist.module.parameters() if p.grad is not None)


def test_a_constraint_beside_another_potential() -> None:
    """Constraints are found in products and powers; the rest of φ only weighs."""

    def ones(texts: list[str]) -> list[float]:
        return [0.5 * text.count("1") for text in texts]

    of = target(full("[01]*1") * Length(2, 3, unit="tokens") * Function(ones))
    exact = truth(of)
    both = [re_length(row) for row in exact.tokens.tolist()]
    assert torch.equal(exact.log_phi.isfinite(), torch.tensor(both))
    assert torch.equal(exact.log_q(of.twisted()).isfinite(), exact.log_sigma.isfinite())
    sampler = Sampler(of.twisted(), of.bound_potential, 3, ess_threshold=1.0)
    paths = enumerate_paths(lambda rng: sampler.smc(rng, of.cases, 2).log_Z_hat.exp())
    assert sum(p * float(z) for p, z in paths) == pytest.approx(float(exact.log_Z.exp()), rel=1e-9)


def re_length(row: list[int]) -> bool:
    ends = row.index(EOS) if EOS in row else len(row)
    return 2 <= ends <= 3 and row[ends - 1] == 1 and all(token == EOS for token in row[ends:])


def test_base_draws_are_free() -> None:
    """What is drawn from p₀ is not constrained: exact samples come from there."""
    of = target(full("[01]*1"))
    assert of.twisted().base.is_base
    assert not of.twisted().is_base
    drawn = of.sampler().base.draw(Rng(0), of.cases, 200)
    assert bool(drawn.log_phi.isneginf().any())
    assert torch.equal(drawn.log_p, drawn.log_q)
    collection = of.collect(Rng(0), max_draws=400)
    share = float(collection.accepted.double().mean())
    assert share == pytest.approx(float(truth(of).log_Z.exp()), abs=0.1)


def test_left_alone() -> None:
    """Without `constrain` nothing changes but what φ is made of."""
    assert constraints_in(Regex("1") * Words(("1",), constrain=False) ** 2.0) == []
    assert target(Words(("1",), constrain=False)).constraint is None
    assert len(constraints_in((Words(("1",)) * Regex("1")) ** 2.0)) == 1


@pytest.mark.parametrize(
    ("potential", "num_tokens", "message"),
    [
        (full("[01]{4}"), 3, "at least 4 tokens and num_tokens is 3"),
        (full("x"), 3, "a letter that it needs is in none of them"),
        (full("0+") * full("1+"), 3, "contradict each other"),
        (Length(5, unit="tokens"), 3, "at least 5 tokens"),
        (full("01") * Length(3, 3, unit="tokens"), 3, "allow other lengths"),
    ],
)
def test_what_cannot_be_met_is_refused(potential: Potential, num_tokens: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        target(potential, num_tokens).twisted()


def test_a_text_that_cannot_end_early() -> None:
    lm = TabularLM.random(3, 4, 0)
    with pytest.raises(ConfigError, match="no text of exactly 3 tokens"):
        Target(lm, full("01"), "1", 3, eos="ignore").twisted()


def test_the_same_draws_show_the_same() -> None:
    def values() -> Tensor:
        of = target(full("[01]*1"))
        assert of.constraint is not None
        assert of.constraint.decoder is not None
        return of.constraint.head(of.constraint.decoder.features([of.prompt_tokens], torch.tensor([[0, 1, 1]])))

    assert torch.equal(values(), values())


def test_prompts_that_end_inside_a_word_and_others() -> None:
    """In one batch, each begins in a state of its own, and a word is never a piece of one."""
    # Letters alone: nothing of them ends the prompt's word.
    letters = Words(("cat",)) * Regex("[a-z]*", mode="fullmatch", constrain=True)
    with pytest.raises(ConfigError, match="after a prompt that ends inside a word"):
        Target("stories", letters, "I saw my", 6).check()
    Target("stories", letters, "I saw: ", 6).check()
    of = Target("stories", Words(("cat",)), prompts=Prompts(("I saw my", "I saw: ")), num_tokens=6, dtype="float32")
    drawn = of.sampler().draw_at_once(Rng(0), of.cases, 24)
    texts = of.lm.decode([torch.cat(pair) for pair in zip(drawn.prompts, drawn.tokens, strict=True)])
    assert all(re.search(r"(?<!\w)cat(?!\w)", text) for text in texts), texts
    assert bool(drawn.log_phi.isfinite().all())
    again = of.sampler().densities(drawn)
    torch.testing.assert_close(again.log_q, drawn.log_q, rtol=0, atol=1e-4)


def test_a_prompt_that_ends_inside_a_token() -> None:
    """The text that is seen satisfies the pattern, letter by letter, whatever its tokens would have been together."""
    pattern = r"me, there (was|lived) [a-z ]{3,20}"
    of = Target("stories", full(pattern), "Once upon a ti", num_tokens=10)
    particles = of.sampler().smc(Rng(0), of.cases, 16).particles
    for row in particles.tokens[0]:
        ended = row.tolist().index(of.lm.eos_token_id) if of.lm.eos_token_id in row else len(row)
        (text,) = of.lm.decode([row[:ended]])
        assert re.fullmatch(pattern, text), text


def test_what_only_the_rest_of_a_word_satisfies() -> None:
    """After "con" the letters "cat" are no word by themselves: that was known first, and then refused."""
    of = Target("stories", Words(none_of=("cat",)) * full("cat"), "con", num_tokens=4)
    found = of.sampler().draw(Rng(0), of.cases, 8)
    assert bool(found.log_phi.isfinite().all())
