"""Models of which several tokens end a text."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.architectures import Words, tiny_model
from tests.constrained import learned
from twistlm import Target
from twistlm.core.errors import ConfigError, DeadParticlesError, ModelError
from twistlm.core.rng import Rng
from twistlm.integrations import generate
from twistlm.models.bundled import folder
from twistlm.models.huggingface import HuggingFaceLM
from twistlm.models.tabular import TabularLM
from twistlm.models.token_texts import check_same_tokens
from twistlm.potentials import Grammar, Regex
from twistlm.potentials.base import Potential
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.twisted import TwistedLM
from twistlm.testing import Enumeration, enumerate_paths

ENDS, T = (2, 3), 2


def texts(lm: TabularLM) -> Iterator[tuple[str, float]]:
    """What is written before the first end, and p₀ of it with its end, one by one."""
    for row in itertools.product(range(lm.vocab_size), repeat=T):
        end = next((at for at, token in enumerate(row) if token in ENDS), T - 1)
        # Each text once: what would come after its end is always 0 here.
        if any(row[end + 1 :]):
            continue
        p, node = 1.0, 2  # The prompt is "1".
        for token in row[: end + 1]:
            p *= float(torch.softmax(lm.table[node], -1)[token])
            node = node * lm.vocab_size + token + 1
        yield "".join(str(token) for token in row[: end + 1] if token not in ENDS), p


@pytest.mark.parametrize(
    ("potential", "fits"),
    [
        (Regex("[01]{0,1}", mode="fullmatch", constrain=True), lambda text: len(text) < 2),
        (Grammar('start: "0" | "01"'), lambda text: text in ("0", "01")),
        (Regex("0", mode="search", eps=0.1), lambda text: ("0" in text) + 0.1),
    ],
)
def test_z_hat_is_exactly_unbiased(potential: Potential, fits: object) -> None:
    of = Target(lm := TabularLM.random(4, T + 1, 3, eos_token_id=ENDS), potential, "1", T)
    Z = sum(p * float(fits(text)) for text, p in texts(lm))  # type: ignore[operator]
    truth = Enumeration.of(TwistedLM(lm), of.bound_potential, of.prompt_tokens, T)
    assert float(truth.log_Z.exp()) == pytest.approx(Z, rel=1e-9)
    for model in (of.twisted(), learned(of)):

        def drawn(rng: Rng, model: TwistedLM = model) -> float:
            try:
                result = Sampler(model, of.bound_potential, T, ess_threshold=1.0).smc(rng, of.cases, 2)
            except DeadParticlesError:
                return 0.0
            for row in result.particles.tokens.flatten(0, 1).tolist():
                end = next((at for at, token in enumerate(row) if token in ENDS), T)
                assert all(token == ENDS[0] for token in row[end + 1 :])
            return float(result.log_Z_hat.exp())

        assert sum(p * value for p, value in enumerate_paths(drawn)) == pytest.approx(Z, rel=1e-9)


@pytest.fixture(scope="module")
def stories() -> tuple[object, object, int]:
    """The story model, whose texts end at a full stop besides, and that token."""
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder("stories")),
        AutoTokenizer.from_pretrained(folder("stories")),
    )
    (stop,) = tokenizer.encode(".", add_special_tokens=False)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, stop]
    return model, tokenizer, stop


def test_texts_end_at_each_of_a_models_ends(stories: tuple[object, object, int]) -> None:
    model, tokenizer, stop = stories
    of = Target((model, tokenizer), Regex("cat", mode="search", eps=0.01), "Once upon a time, there was a", 24)
    eos = tokenizer.eos_token_id
    assert of.lm.eos_token_ids == (eos, stop)
    particles = of.sampler().smc(Rng(0), of.cases, 64).particles
    rows = [row for row in particles.tokens[0].tolist() if stop in row]
    assert rows
    assert all(set(row[row.index(stop) + 1 :]) <= {eos} for row in rows)
    ended = [bool({eos, stop}.intersection(row)) for row in particles.tokens[0].tolist()]
    assert particles.finished[0].tolist() == ended


def test_generate_ends_where_the_target_does(stories: tuple[object, object, int]) -> None:
    model, tokenizer, stop = stories
    of = Target(
        (model, tokenizer), Regex("cat", mode="search", eps=0.01), prompt := "Once upon a time, there was a", 24
    )
    inputs = tokenizer(prompt, return_tensors="pt")
    how = {
        "custom_generate": generate,
        "run": of,
        "num_particles": 4,
        "num_return_sequences": 4,
        "seed": 3,
        "do_sample": True,
        "top_k": 0,
    }
    out = model.generate(**inputs, **how)[:, inputs.input_ids.shape[1] :]
    assert any(stop in row for row in out.tolist())
    for row in out.tolist():
        assert set(row[row.index(stop) + 1 :] if stop in row else []) <= {tokenizer.eos_token_id}
    with pytest.raises(
        ConfigError, match=f"eos_token_id = 0, and this target's texts end with 0, {stop}; leave it out"
    ):
        model.generate(**inputs, **how, eos_token_id=0)


def test_models_that_end_differently_are_not_compared() -> None:
    several = tiny_model()
    several.generation_config.eos_token_id = [0, 4]
    with pytest.raises(ModelError, match="texts of two end with 0, 4 and those of the base model one with 0"):
        check_same_tokens(HuggingFaceLM(several, Words(), "two"), HuggingFaceLM(tiny_model(), Words(), "one"), "one")
