"""Draws by several threads are those of one thread, whatever they share: prompts read, caches, tables, twists."""

import copy
import pickle
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests.cases import cases, make_case
from twistlm.certificates.bounds import Bounds, log_Z_bounds
from twistlm.core.errors import DeadParticlesError
from twistlm.core.rng import Rng
from twistlm.models.huggingface import load
from twistlm.potentials import Function
from twistlm.sampling.exact.budget import Budget
from twistlm.sampling.exact.collect import collect
from twistlm.sampling.sampler import Sampler, WorkerContext
from twistlm.sampling.samples import Samples
from twistlm.sampling.smc import Keep
from twistlm.sampling.twisted import TwistedLM
from twistlm.twists.head import linear
from twistlm.twists.informed import Informed
from twistlm.twists.low_rank import low_rank

LM = load("stories")
PROMPTS = [LM.encode(text) for text in ("Once upon a time, there was a", "The dog said that", "He")]


pytestmark = pytest.mark.usefixtures("threads")


def twisted(name: str) -> TwistedLM:
    if name == "none":
        return TwistedLM(LM)
    torch.manual_seed(0)
    twist = {"linear": linear, "low_rank": low_rank}[name](LM)
    with torch.no_grad():
        for parameter in twist.module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return TwistedLM(LM, twist)


def drawn(sampler: Sampler, num_threads: int, prompts: list[torch.Tensor], each: int, batch: int) -> Samples:
    torch.set_num_threads(num_threads)
    return sampler.draw(Rng(3), cases(prompts), each, keep=Keep(features=True), batch=batch)


@pytest.mark.parametrize("twist", ["none", "linear", "low_rank"])
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS])
def test_the_same_draws_as_by_one_thread(twist: str, prompts: list[torch.Tensor]) -> None:
    each, batch = 60 // len(prompts), 10
    alone, together = (drawn(Sampler(twisted(twist), None, 8), n, prompts, each, batch) for n in (1, 4))
    assert torch.equal(alone.tokens, together.tokens)
    assert len(alone.tokens.unique(dim=0)) > 40
    for name in ("log_p", "log_q", "features"):
        torch.testing.assert_close(getattr(alone, name), getattr(together, name), rtol=0, atol=0)


def test_a_potential_is_asked_by_the_callers_thread_alone() -> None:
    asked = set()

    def function(texts: list[str]) -> list[float]:
        asked.add(threading.get_ident())
        return [0.5] * len(texts)

    sampler = Sampler(TwistedLM(LM), Function(function).bind(LM), 4)
    assert len(drawn(sampler, 3, PROMPTS[:1], 40, 10)) == 40
    assert asked == {threading.get_ident()}


@pytest.mark.parametrize("informed", [None, Informed((1, 3), torch.tensor([[0.8, 0.3, 0.0]] * 2).double())])
def test_smc_of_several_batches_is_that_of_one_thread(informed: Informed | None) -> None:
    asked = set()

    def vowels(texts: list[str]) -> list[float]:
        asked.add(threading.get_ident())
        return [sum(each in "aeiou" for each in text) / len(text) for text in texts]

    potential = Function(vowels, log=False, log_upper_bound=0.0).bind(LM)
    plain = Sampler(twisted("low_rank"), potential, 5)
    exact = collect(Rng(1), WorkerContext(plain, cases(PROMPTS[:1])), Budget(256), target="").exact

    def bounds(num_threads: int) -> Bounds:
        torch.set_num_threads(num_threads)
        sampler, runs = replace(plain, informed=informed), cases(PROMPTS[:1] * 24)
        return log_Z_bounds(Rng(2), sampler, runs, 4, exact=exact, batch=16)

    alone, together = bounds(1), bounds(4)
    assert len(alone.lowers.unique()) == 24
    for name in ("lowers", "uppers"):
        torch.testing.assert_close(getattr(alone, name), getattr(together, name), rtol=0, atol=0)
    assert asked == {threading.get_ident()}


def test_chosen_sequences_are_those_of_one_thread() -> None:
    sampler = Sampler(
        twisted("low_rank"), Function(lambda texts: [1 / len(text) for text in texts], log=False).bind(LM), 5
    )
    found = []
    for num_threads in (1, 4):
        torch.set_num_threads(num_threads)
        found.append(sampler.choose(Rng(4), cases(PROMPTS[:1] * 700), 2))
    alone, together = found
    assert len(alone.results) == 3
    assert torch.equal(alone.samples.tokens, together.samples.tokens)
    torch.testing.assert_close(alone.log_Z_hat, together.log_Z_hat, rtol=0, atol=0)


def test_an_error_within_a_thread_is_the_callers() -> None:
    sampler = Sampler(TwistedLM(LM), Function(lambda texts: [0.0] * len(texts), log=False).bind(LM), 3)
    with pytest.raises(DeadParticlesError, match="every particle of run 0"):
        sampler.choose(Rng(0), cases(PROMPTS[:1] * 300), 4)


def test_the_users_network_attends_as_before_afterwards() -> None:
    before = LM.module.config._attn_implementation
    drawn(Sampler(TwistedLM(LM), None, 4), 4, PROMPTS[:1], 40, 5)
    assert LM.module.config._attn_implementation == before == "sdpa"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_what_threads_share_can_be_copied(copied: Callable[[TwistedLM], TwistedLM]) -> None:
    case = make_case()
    here, there = (model.start([case.prompt], 3, 2) for model in (case.twisted, copied(case.twisted)))
    assert torch.equal(here.lm.features, there.lm.features)
    LM.start(PROMPTS[:1])
    assert LM._decoder._memory._kept
    assert not copied(LM._decoder._memory)._kept  # type: ignore[arg-type, attr-defined]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_head_can_be_copied_after_it_has_been_used(copied: Callable[[torch.nn.Module], torch.nn.Module]) -> None:
    head, features = linear(LM).head, torch.randn((3, LM.feature_size))
    with torch.no_grad():
        head.bias.add_(1.0)  # type: ignore[union-attr, operator]
        before = head(features)
        torch.testing.assert_close(copied(head)(features), before)  # type: ignore[arg-type]
