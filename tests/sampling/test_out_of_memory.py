"""Out of memory in one piece: smaller ones, of which one line is said, and the same results.

What is asked of the allocator here is more than any machine has, so the errors are torch's own.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cases import Case, TablePotential
from twistlm.cli import COMMANDS, main
from twistlm.core.errors import PotentialError
from twistlm.core.memory import MEMORY_ERRORS, in_pieces, is_out_of_memory, say_smaller
from twistlm.models.base import DecoderState, Prompts
from twistlm.models.tabular import TabularLM
from twistlm.potentials.base import Product, evaluate
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.twisted import TwistedLM

MOST = 2


@pytest.fixture(autouse=True)
def nothing_said_yet() -> Iterator[None]:
    say_smaller.cache_clear()
    yield
    say_smaller.cache_clear()


def allocate(rows: int) -> None:
    """What no machine has, for more rows than `MOST`."""
    if rows > MOST:
        torch.empty(2**60, dtype=torch.uint8)


class Large(TabularLM):
    """A model whose cache has room for `MOST` prefixes, and whose passes for as many sequences."""

    def __init__(self, lm: TabularLM) -> None:
        super().__init__(lm.table, lm.max_length or 0, lm.eos_token_id)
        self.read: list[int] = []

    def advance(self, state: DecoderState, parents: Tensor, tokens: Tensor) -> DecoderState:
        allocate(len(parents))
        return super().advance(state, parents, tokens)

    def features(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        self.read.append(len(tokens))
        allocate(len(tokens))
        return super().features(prompts, tokens)


@dataclass(frozen=True)
class LargePotential(TablePotential):
    """φ of at most `MOST` sequences at a time."""

    seen: list[int] = field(default_factory=list)

    def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        self.seen.append(len(tokens))
        allocate(len(tokens))
        return super().log_phi(prompts, tokens)


def large(case: Case) -> LargePotential:
    return LargePotential(case.potential.table, case.potential.vocab_size)


def sampler(case: Case, lm: TabularLM, **changes: Any) -> Sampler:
    model = TwistedLM(lm, case.twisted.twist, case.eos)
    return replace(Sampler(model, case.potential, case.num_steps), **changes)


def equal(one: Any, other: Any) -> bool:
    """Whether two results are the same to the last bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(equal, one, other))
    if hasattr(one, "__dataclass_fields__"):
        return all(equal(getattr(one, name), getattr(other, name)) for name in one.__dataclass_fields__)
    return bool(one == other)


def test_what_is_asked_for_is_refused_by_torch_itself() -> None:
    with pytest.raises(RuntimeError) as refused:
        allocate(MOST + 1)
    assert is_out_of_memory(refused.value)
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert all(issubclass(each, MEMORY_ERRORS) for each in (torch.cuda.OutOfMemoryError, MemoryError))


def test_pieces_come_in_order_and_one_that_is_too_large_alone_is_an_error() -> None:
    def run(rows: slice) -> Tensor:
        allocate(rows.stop - rows.start)
        return torch.arange(rows.start, rows.stop)

    assert in_pieces(run, 33, "counting").equal(torch.arange(33))
    with pytest.raises(RuntimeError, match="allocate"):
        in_pieces(lambda rows: torch.empty(2**60), 33, "counting")
    asked = []

    def broken(rows: slice) -> Tensor:
        asked.append(rows)
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="mismatch"):
        in_pieces(broken, 33, "counting")
    assert len(asked) == 1


def test_a_potential_is_evaluated_in_pieces(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    samples = case.truth.samples(case.base)
    expected = evaluate(case.potential, samples.prompts, samples.tokens)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            potential = large(case)
            assert evaluate(potential, samples.prompts, samples.tokens).equal(expected)
            assert max(potential.seen) == len(samples.tokens)
            assert sum(rows for rows in potential.seen if rows <= MOST) == len(samples.tokens)
        product = Product((case.potential, large(case)))
        assert evaluate(product, samples.prompts, samples.tokens).equal(2 * expected)
    assert caplog.messages == [
        "out of memory while evaluating LargePotential: going on in smaller pieces, which takes longer [TW504]"
    ]


def test_a_potential_that_needs_too_much_for_one_sequence_is_one_error(case: Case) -> None:
    @dataclass(frozen=True)
    class Huge(TablePotential):
        def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
            return torch.empty(2**60)

    samples = case.truth.samples(case.base)
    with pytest.raises(PotentialError, match="Huge raised RuntimeError"):
        evaluate(Huge(case.potential.table, 3), samples.prompts, samples.tokens)


def test_where_there_are_no_smaller_pieces_a_command_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def hungry() -> None:
        """Ask for what no machine has."""
        torch.empty(2**60)

    monkeypatch.setitem(COMMANDS, "list", hungry)
    assert main(["list"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory (")
    assert said.count("\n") == 1
