"""The gradient of the same batch is the same, bit for bit, with several threads."""

import hashlib
from collections.abc import Callable

import pytest
import torch

from tests.architectures import VOCAB, tiny_lm
from twistlm.core.kernels import entries
from twistlm.core.registry import available, lookup
from twistlm.core.rng import Rng
from twistlm.sampling.samples import Samples, Siblings
from twistlm.sampling.twisted import TwistedLM
from twistlm.twists.tabular import TabularHead

REPEATS = 30


@pytest.fixture(autouse=True)
def _several_threads(threads: Callable[[int], None]) -> None:
    """More threads than cores take turns in ever other orders."""
    threads(4)


def samples(count: int, length: int, num_siblings: int) -> Samples:
    """Made up: a few tokens again and again, as a language model writes them."""
    uniforms = Rng(0).uniform((1, count * length * (1 + num_siblings))).pow(4)
    tokens = (uniforms * VOCAB).long().view(count, length, 1 + num_siblings)
    log_p = torch.zeros(count, length, dtype=torch.float64)
    ratio = torch.zeros(count, length, num_siblings, dtype=torch.float64)
    return Samples(
        prompts=[torch.tensor([5, 6, 7])] * count, tokens=tokens[..., 0], mask=torch.ones(count, length).bool(),
        log_p=log_p, log_q=log_p, log_phi=log_p.sum(-1), siblings=Siblings(tokens[..., 1:], ratio),
        conditions=tokens[:, :2, 0],
    )  # fmt: skip


def patterns(model: TwistedLM, batch: Samples, repeats: int) -> set[str]:
    """Digests of the gradient of one batch, worked out again and again."""
    assert model.twist is not None
    parameters = [p for p in model.twist.module.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(1)
    found = set()
    upstream: list[torch.Tensor] = []
    for _ in range(repeats):
        scores = model.score(batch, normaliser=True)
        values = [x for x in (scores.log_psi, scores.siblings, scores.log_normaliser) if x is not None]
        upstream = upstream or [torch.randn(x.shape, generator=generator) for x in values]
        total = sum((x * weight).sum() for x, weight in zip(values, upstream, strict=True))
        gradients = torch.autograd.grad(total, parameters)  # type: ignore[arg-type]
        found.add(hashlib.sha256(b"".join(each.numpy().tobytes() for each in gradients)).hexdigest())
    return found


@pytest.mark.parametrize("name", list(available("twist")))
def test_the_gradient_of_every_twist_is_always_the_same(name: str) -> None:
    lm = tiny_lm("llama")
    with Rng(2).initialising():
        twist = lookup("twist", name).value(lm)
        with torch.no_grad():
            for parameter in twist.module.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    # Those with a network of their own need fewer: the network's own gradient takes the time.
    count, repeats = (800, REPEATS) if twist.decoder is None else (300, 8)
    assert len(patterns(TwistedLM(lm, twist, "ignore"), samples(count, 4, 8), repeats)) == 1


def test_the_gradient_of_a_tabular_twist_is_always_the_same() -> None:
    numbers = (Rng(0).uniform((1, 60_000))[0].pow(4) * 1000).long().view(2, -1)
    table = torch.zeros(1000, 4, dtype=torch.float64)
    head = TabularHead(table)
    found = set()
    for _ in range(REPEATS):
        chosen = head.gather(numbers[0], numbers[1] % 4) * torch.linspace(-1, 1, numbers.shape[1])
        every = head(numbers[0]) * torch.linspace(-1, 1, 4)
        (gradient,) = torch.autograd.grad(chosen.sum() + (every / 3).sum(), [head.table])
        found.add(gradient.numpy().tobytes())
    assert len(found) == 1


def test_entries_are_those_of_indexing_and_so_is_their_gradient() -> None:
    table = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[0, 6, 6], [2, 0, 6]])
    for chosen in (table, table[:, 0]):
        mine, truth = entries.entries(chosen, index), chosen[index]
        assert mine.equal(truth)
        weight = torch.linspace(-1, 1, truth.numel(), dtype=torch.float64).view(truth.shape)
        torch.testing.assert_close(
            torch.autograd.grad((mine * weight).sum(), table, retain_graph=True)[0],
            torch.autograd.grad((truth * weight).sum(), table, retain_graph=True)[0],
        )
