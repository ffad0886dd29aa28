"""Grammars that are not regular: the parser against brute force, samplers and certificates against enumeration."""

import itertools
import json
import re
from typing import Literal

import pytest
import torch

from tests.constrained import EOS, learned, target, truth
from twistlm import Target
from twistlm.automata.grammar import Grammar as Parser
from twistlm.certificates.effort import Search
from twistlm.certificates.rare_events import probability
from twistlm.core.errors import ConfigError, DeadParticlesError
from twistlm.core.rng import Rng
from twistlm.potentials import Grammar, Length, Regex, Words
from twistlm.potentials.constraint import Constraint
from twistlm.sampling.explored import Explored
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.twisted import TwistedLM
from twistlm.testing import enumerate_paths

# As many 0s as 1s, the 0s first: no automaton knows it.
NESTED = 'start: "0" start "1" | "0" "1"'
LISTS = 'start: "[" item ("," item)* "]"\nitem: start | "1" | "2"'
TREE = {
    "$ref": "#/$defs/tree",
    "$defs": {
        "tree": {"type": "array", "items": {"anyOf": [{"$ref": "#/$defs/tree"}, {"enum": [1, 2]}]}, "minItems": 1}
    },
    "x-guidance": {"whitespace_flexible": False},
}


def nested(text: str) -> bool:
    return re.fullmatch("0+1+", text) is not None and text.count("0") == text.count("1")


# Two tokens of the same bytes, one of several letters, one without bytes, one that is in no text, and EOS.
VOCABULARY = [b"0", b"1", b"01", b"0", b"", b"\xff", b"<eos>"]


@pytest.mark.parametrize("room", [1, 64_000_000])
def test_masks_against_every_sequence(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tokenization counts, in whatever order prefixes are asked about, with room for many masks or for one."""
    monkeypatch.setattr("twistlm.automata.grammar.MOST_BYTES", room)
    parser, end = Parser(NESTED, VOCABULARY, (6,)), 6
    prefixes = [list(each) for n in range(4) for each in itertools.product(range(4), repeat=n)]
    for at in torch.randperm(len(prefixes), generator=torch.Generator().manual_seed(0)).tolist():
        prefix = prefixes[at]
        text = b"".join(VOCABULARY[token] for token in prefix).decode()
        possible = [_begins(text + VOCABULARY[token].decode()) for token in range(4)]
        assert parser.accepts(prefix) == nested(text)
        assert parser.allowed(prefix).tolist() == [*possible, False, False, nested(text)], prefix
        assert [parser.allows(prefix, token) for token in range(7)] == parser.allowed(prefix).tolist()
        assert parser.allowed([*prefix, end]).tolist() == [False] * 6 + [nested(text)]


def _begins(text: str) -> bool:
    """Whether a nested text begins so."""
    return re.fullmatch("0+1*", text) is not None and text.count("1") <= text.count("0")


@pytest.mark.parametrize("eos", ["absorb", "ignore"])
def test_nothing_is_missed(eos: str) -> None:
    """φ is what the grammar says of each text, and q positive wherever it is 1."""
    of = target(Grammar(NESTED), num_tokens=4, eos=eos)
    exact = truth(of)
    for tokens, log_sigma in zip(exact.tokens.tolist(), exact.log_sigma.tolist(), strict=True):
        ended = tokens.index(EOS) if EOS in tokens else len(tokens)
        text = "".join(map(str, tokens[:ended]))
        assert (log_sigma > -torch.inf) == (nested(text) and all(token == EOS for token in tokens[ended:])), tokens
    for model in (of.twisted(), learned(of)):
        log_q = exact.log_q(model)
        torch.testing.assert_close(log_q.exp().sum(), torch.tensor(1.0, dtype=torch.float64))
        assert bool(log_q[exact.log_sigma.isfinite()].isfinite().all())
        # Four tokens of which none is a 1 too many.
        assert int(log_q.isfinite().sum()) < 12


@pytest.mark.parametrize("eos", ["absorb", "ignore"])
def test_z_hat_is_exactly_unbiased(eos: str) -> None:
    of = target(Grammar(NESTED) * Length(1, 3, "tokens"), num_tokens=4, eos=eos)
    for model in (of.twisted(), learned(of)):
        sampler = Sampler(model, of.bound_potential, 4)
        paths = enumerate_paths(lambda rng, s=sampler: Z_hat(s, rng, of))  # type: ignore[misc]
        mean = sum(p * value for p, value in paths)
        assert mean == pytest.approx(float(truth(of).log_Z.exp()), rel=1e-9)


def Z_hat(sampler: Sampler, rng: Rng, of: Target) -> float:
    """0 where no particle found an end."""
    try:
        return float(sampler.smc(rng, of.cases, 2).log_Z_hat.exp())
    except DeadParticlesError:
        return 0.0


def test_scores_are_those_of_the_draws() -> None:
    of = target(Grammar(NESTED), num_tokens=6)
    sampler = of.sampler(learned(of).twist)
    drawn = sampler.draw_at_once(Rng(0), of.cases, 64)
    again = sampler.densities(drawn)
    torch.testing.assert_close(again.log_q, drawn.log_q, rtol=0, atol=1e-6)
    scores = sampler.model.score(drawn, normaliser=True)
    assert scores.log_normaliser is not None
    on = drawn.mask & drawn.log_phi.isfinite().unsqueeze(1)
    torch.testing.assert_close(scores.log_psi[on].double(), again.log_psi[on], rtol=0, atol=1e-5)
    log_q = drawn.log_p + scores.log_psi - scores.log_normaliser
    torch.testing.assert_close(log_q[on], drawn.log_q[on], rtol=0, atol=1e-5)


def test_what_is_kept_of_prefixes_takes_four_bytes_a_token() -> None:
    """At once as token by token; of 512 texts of 800 tokens eight bytes come to 2.4 GiB."""
    of = target(Grammar(NESTED), num_tokens=6)
    assert of.constraint is not None
    decoder = of.constraint.decoder
    assert decoder is not None
    tokens = of.sampler().draw_at_once(Rng(0), of.cases, 8).tokens
    prompts = [of.prompt_tokens] * 8
    whole, state = decoder.features(prompts, tokens), decoder.start(prompts)
    assert whole.dtype == torch.int32
    for t in range(6):
        assert state.features.dtype == torch.int32
        assert state.features.expand(8, -1).equal(whole[:, t])
        state = decoder.advance(state, torch.arange(len(tokens)) % len(state.features), tokens[:, t])


def test_the_bound_is_never_below_and_ends_at_z() -> None:
    of = target(Grammar(NESTED), num_tokens=6)
    assert of.constraint is not None
    log_Z, ruled_out = float(truth(of).log_Z), Explored(of.constraint, torch.float64, bounds=True)
    for number in range(30):
        model = TwistedLM(of.lm, None, of.eos, constraint=ruled_out.twist)
        drawn = Sampler(model, of.bound_potential, 6).draw_at_once(Rng(number), of.cases, 16)
        most = ruled_out.log_value(of.prompt_tokens)
        assert log_Z <= most
        assert float(((drawn.log_p - drawn.log_q).sum(-1) + drawn.log_phi).max()) <= most + 1e-6
        ruled_out.learn(drawn, 0.0)
    assert ruled_out.log_value(of.prompt_tokens) == pytest.approx(log_Z, abs=0.01)


def test_exact_samples() -> None:
    of = target(Grammar(NESTED), num_tokens=6)
    exact = of.collect(Rng(1), max_draws=2000, chunk=100).exact.samples
    sigma = truth(of)
    number = (exact.tokens * (3 ** torch.arange(5, -1, -1))).sum(-1)
    found, expected = torch.bincount(number, minlength=729) / len(number), sigma.log_sigma.exp()
    spread = (expected * (1 - expected) / len(number)).sqrt()
    assert bool(((found - expected).abs() <= 4.5 * spread + 1e-12).all())


def test_intervals_hold_the_truth() -> None:
    of = target(Grammar(NESTED), num_tokens=5)
    exact, missed = float(truth(of).log_Z.exp()), 0
    for seed in range(12):
        (found,) = probability(of, [0.5], search=Search(num_draws=256, num_samples=256, num_events=4), seed=seed)
        missed += not found.value.low <= exact <= found.value.high
        assert all(nested(event.text.rstrip("2")) for event in found.by_prompt[0].events)
        assert 0 < found.hits <= found.num_draws
    assert missed <= 2


@pytest.mark.parametrize(("grammar", "syntax"), [(json.dumps(TREE), "json_schema"), (LISTS, "lark")])
def test_lists_of_lists(grammar: str, syntax: Literal["lark", "json_schema"]) -> None:
    """On the bundled model: every text that ended is JSON, nested as it likes, and most end."""
    of = Target("stories", Grammar(grammar, syntax=syntax), "Once upon a time", num_tokens=16)
    drawn = of.sampler().draw(Rng(0), of.cases, 64)
    complete = drawn.log_phi.isfinite()
    assert float(complete.double().mean()) > 0.5
    for row in drawn.tokens[complete]:
        (text,) = of.lm.decode([row[row != of.lm.eos_token_id]])
        assert isinstance(json.loads(text), list), text
    assert bool(of.sampler().smc(Rng(1), of.cases, 32).log_Z_hat.isfinite())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Grammar("start: ("), "the grammar does not compile"),
        (lambda: Grammar('begin: "a"'), "the grammar does not compile"),
        (lambda: Grammar("{", syntax="json_schema"), "not supported"),
        (lambda: Grammar('{"type": "any thing"}', syntax="json_schema"), "not supported|does not compile"),
        # The parser takes `"\\""` for it.
        (
            lambda: Grammar('{"type": "string", "pattern": "^[^\\"]$"}', syntax="json_schema"),
            "takes no pattern; JsonSchema",
        ),
        (
            lambda: Grammar('{"$defs": {"a": {"patternProperties": {"a": true}}}}', syntax="json_schema"),
            "no patternProp",
        ),
        (lambda: Grammar(NESTED, syntax="bnf"), "syntax is 'bnf'; choose lark or json_schema"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_is_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=message):
        make()


def test_left_alone() -> None:
    """Without `constrain` it is a potential like any other, and beside an automaton both hold."""
    assert target(Grammar(NESTED, constrain=False)).constraint is None
    both = target(
        Grammar(NESTED) * Regex("0*1*", mode="fullmatch", constrain=True) * Length(4, 4, "tokens"), num_tokens=4
    )
    drawn = both.sampler().draw_at_once(Rng(0), both.cases, 32)
    alive = drawn.tokens[drawn.log_phi.isfinite()].tolist()
    assert {"".join(map(str, row)) for row in alive} == {"0011"}


def test_a_property_may_be_called_pattern() -> None:
    schema = {"type": "object", "properties": {"pattern": {"enum": ["pattern"]}}, "additionalProperties": False}
    assert Grammar(json.dumps(schema), syntax="json_schema").grammars


@pytest.mark.parametrize(
    ("beside", "met"),
    [(Length(1, 1, "words"), True), (Length(3, 5, "words"), False), (Words(all_of=("cat",)), False)],
)
def test_what_contradicts_a_grammar_is_refused(beside: Constraint, met: bool) -> None:
    of = Target("stories", Grammar('start: " yes" | " no"') * beside, "Once upon a time", num_tokens=6)
    if not met:
        with pytest.raises(ConfigError, match=r"none of \d+ draws of at most 6 tokens satisfies .*, or change one"):
            of.sampler()
        return
    assert bool(of.sampler().draw(Rng(0), of.cases, 8).log_phi.isfinite().all())


def test_more_tokens_than_there_are() -> None:
    of = Target("stories", Grammar('start: " yes yes yes yes"'), "Once upon a time", num_tokens=2)
    with pytest.raises(ConfigError, match=r"satisfies Grammar.*; ask for more tokens \(num_tokens\)$"):
        of.sampler()
