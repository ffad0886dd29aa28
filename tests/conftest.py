"""Fixtures for every test."""

from collections.abc import Callable, Iterator

import pytest
import torch

from tests.cases import Case, make_case

torch.set_num_threads(1)


@pytest.fixture(params=["ignore", "absorb"])
def case(request: pytest.FixtureRequest) -> Case:
    """V = 3, T = 3 after one token of prompt, both EOS semantics."""
    return make_case(eos=request.param)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads torch has, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def tiny_case() -> Case:
    """V = T = 2: small enough to take every random path of two particles."""
    return make_case(vocab_size=2, num_steps=2)
