"""Draws by several threads are those of one thread, whatever they share: prompts read, caches, tables, twists."""

import copy
import pickle
import threading
from collections.abc import Callable

import pytest
import torch

from tests.cases import cases, make_case
from twistlm.core.rng import Rng
from twistlm.models.huggingface import load
from twistlm.potentials import Function
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.samples import Samples
from twistlm.sampling.smc import Keep
from twistlm.sampling.twisted import TwistedLM
from twistlm.twists.head import linear
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
    assert LM._memory._kept
    assert not copied(LM._memory)._kept  # type: ignore[arg-type, attr-defined]
