"""What a target is, is what is in it: weights, tokenizers, code. Not where it lies, nor what it is called."""

import copy
import functools
import importlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

from tests.architectures import Words, tiny_lm, tiny_model
from tests.cases import make_case
from twistlm import Target
from twistlm.core.errors import ExactSamplesError
from twistlm.core.identity import Files, UnidentifiableError, digest
from twistlm.core.rng import Rng
from twistlm.models import bundled
from twistlm.models.base import Prompts
from twistlm.models.huggingface import HuggingFaceLM
from twistlm.potentials import BasePotential, Classifier, Function, Regex
from twistlm.runs.certify import certify
from twistlm.sampling.exact.collection import load

MODULE = """
    import functools, math, re

    LIMIT = {limit}

    def made(factor):
        def inner(texts, power={default}):
            return [factor * len(text) ** power for text in texts]
        return inner

    class Scorer:
        rate = {rate}
        def __init__(self, words):
            self.words = words
        @functools.cached_property
        def pattern(self):
            return re.compile("|".join(sorted(self.words)))
        def __call__(self, texts):
            return [-math.log1p(self.rate * len(self.pattern.findall(text))) for text in texts]

    score, again, other = made({closure}), made({closure}), made(8)
    obj, more = Scorer({{"good", "bad"}}), Scorer({{"good", "ugly"}})
"""
VALUES = {"limit": 3, "default": 2, "rate": 0.5, "closure": 7}
NAMES = ("score", "again", "other", "obj", "more")


@pytest.fixture
def digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """What a module of the user's holds, by name; it is another file each time, and so may be another module."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def found(name: str = "scores", **changes: Any) -> dict[str, str]:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(MODULE).format(**VALUES | changes))
        made = importlib.import_module(name)
        return {each: digest(getattr(made, each)) for each in NAMES}

    return found


def test_a_function_is_its_source_its_module_and_its_closure(digests: Callable[..., dict[str, str]]) -> None:
    before = digests()
    assert before["score"] == before["again"]
    assert len(set(before.values())) == 4
    assert digests("moved") == before
    for number, changes in enumerate(({"limit": 4}, {"default": 3}, {"rate": 0.25})):
        after = digests(f"changed_{number}", **changes)
        assert not set(after.values()) & set(before.values())


def test_functions_and_models_are_the_same_in_every_process(
    tmp_path: Path, digests: Callable[..., dict[str, str]]
) -> None:
    here = digests()
    code = """
import json, scores
from tests.architectures import tiny_lm
from twistlm import Target
from twistlm.core.identity import digest

found = [digest(getattr(scores, name)) for name in ("score", "again", "other", "obj", "more")]
target = Target(tiny_lm(), lambda texts: [-float(len(text) in {3, 5, 8, 13}) for text in texts], "5", 4)
print(json.dumps([*found, target.fingerprint]))
"""
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2]), *sys.path])
    outputs = []
    # What a program says beside its functions is none of theirs.
    for seed in ("1", "2"):
        (tmp_path / "program.py").write_text(f"{code}\nSEED = {seed}\n")
        outputs.append(
            subprocess.run(
                [sys.executable, str(tmp_path / "program.py")],
                env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
                capture_output=True, text=True, check=True,
            ).stdout
        )  # fmt: skip
    assert outputs[0] == outputs[1]
    assert json.loads(outputs[0])[:5] == list(here.values())


def test_what_is_worked_out_once_and_kept_changes_nothing(digests: Callable[..., dict[str, str]]) -> None:
    before = digests()["obj"]
    obj = sys.modules["scores"].obj
    obj(["good"])
    assert "pattern" in vars(obj)
    assert digest(obj) == before


def test_a_copy_changes_nothing() -> None:
    class Own(BasePotential):
        def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
            return torch.zeros(len(tokens))

    potential = Own()
    before = digest(potential)
    # Python keeps in the class how its objects are copied.
    copy.copy(potential)
    assert digest(potential) == before


def test_values_of_every_kind_are_told_apart() -> None:
    def recursive(n: int) -> int:
        return 1 if n == 0 else n * recursive(n - 1)

    loop: list[Any] = [1]
    loop.append(loop)
    values: list[Any] = [
        None, 0, False, 0.0, -0.0, "0", b"0", [], {}, set(), (1, 2), [2, 1], [[1], 2], [1, [2]], {"a": 1, "b": 2},
        {"a": 2, "b": 1}, torch.zeros(2), torch.zeros(2, dtype=torch.float64), torch.zeros(1, 2), np.zeros(2),
        np.zeros(2, dtype=np.float32), re.compile("a"), re.compile("a", re.IGNORECASE), math.log, math.exp, np.log,
        torch.relu, "a".upper, "b".upper, str.upper, functools.partial(math.pow, 2), functools.partial(math.pow, 3),
        torch.nn.Linear(2, 1), recursive, loop, functools.lru_cache(recursive), Path("a"), os.path.join, dict, print,
    ]  # fmt: skip
    assert len({digest(value) for value in values}) == len(values)
    assert digest({"b": 2, "a": [1]}) == digest({"a": [1], "b": 2})
    shared = [1, 2]
    assert digest([shared, shared]) == digest([[1, 2], [1, 2]])


@pytest.mark.parametrize("value", [threading.Lock(), (x for x in "a"), sys.stdout, torch.Generator().device.__class__])
def test_what_cannot_be_read_is_said_or_named(value: Any) -> None:
    if isinstance(value, type):
        assert digest(value)
        return
    with pytest.raises(UnidentifiableError, match="holds what cannot be read"):
        digest({"deep": [value]})


def numbers(scale: float) -> Callable[[list[str]], list[float]]:
    return lambda texts: [-scale * len(text) for text in texts]


def test_targets_differ_by_their_models_and_functions() -> None:
    def target(lm: Any, scale: float = 1.0, **options: Any) -> Target:
        return Target(lm, Function(numbers(scale), log_upper_bound=0.0), "5", 4, **options)

    class Shouting(Words):
        def batch_decode(self, sequences: list[list[int]], **options: Any) -> list[str]:
            return [text.upper() for text in super().batch_decode(sequences)]

    same = target(tiny_lm()).fingerprint
    assert target(tiny_lm()).fingerprint == same
    others = [
        target(tiny_lm(scale=3.9)), target(tiny_lm("llama")), target(tiny_lm(), 2.0), target(tiny_lm(), eos="ignore"),
        target(tiny_lm(dtype=torch.bfloat16)), target(HuggingFaceLM(tiny_model(), Shouting(), "gpt2")),
        target(make_case().lm), target(make_case(seed=6).lm), target(tiny_lm(), identity="mine"),
        target(tiny_lm(), identity="mine too"),
    ]  # fmt: skip
    found = [each.fingerprint for each in others]
    assert len({same, *found}) == 1 + len(others)
    assert target(tiny_lm(scale=3.9), 5.0, identity="mine").fingerprint == found[-2], "a name stands for the content"


class Scaled:
    """A function times a number, of whom nothing but the number is its own."""

    def __init__(self, function: Callable[[str], float], scale: float) -> None:
        functools.update_wrapper(self, function)
        self.scale = scale

    def __call__(self, text: str) -> float:
        return self.scale * self.__wrapped__(text)  # type: ignore[attr-defined]


def test_what_wraps_a_function_is_more_than_the_function() -> None:
    def length(text: str) -> float:
        return float(len(text))

    other = types.FunctionType(length.__code__, globals(), "length")
    assert digest(Scaled(length, 1.0)) != digest(Scaled(length, 2.0))
    assert digest(Scaled(length, 1.0)) == digest(Scaled(other, 1.0))


class Network(torch.nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self._scale = scale


def test_what_a_network_keeps_to_itself_counts() -> None:
    assert digest(Network(1.0)) != digest(Network(2.0))
    assert digest(Network(1.0)) == digest(Network(1.0).eval())


def test_without_a_source_it_is_said() -> None:
    namespace: dict[str, Any] = {}
    exec("def phi(text):\n    return 0.0\n", namespace)
    with pytest.raises(UnidentifiableError, match="phi has no source"):
        digest(namespace["phi"])


def test_how_chats_are_written_counts(tmp_path: Path) -> None:
    tokenizers = [AutoTokenizer.from_pretrained(bundled.folder("stories")) for _ in range(3)]
    plain = digest(tokenizers[0])
    for tokenizer, template in zip(tokenizers, (None, "{{ messages }}", "X{{ messages }}"), strict=True):
        tokenizer.chat_template = template
    assert digest(tokenizers[0]) == plain
    assert len({digest(each) for each in tokenizers}) == 3
    found = set()
    for number, tokenizer in enumerate(tokenizers[1:]):
        tokenizer.save_pretrained(tmp_path / str(number))
        found.add(digest(Files(tmp_path / str(number))))
    assert len(found) == 2


def edited(folder: Path, key: str) -> None:
    """One number of a model's folder becomes another."""
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if key in name)
    tensors[name].view(-1)[0] += 1.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_folder_is_its_weights_and_tokenizer_wherever_it_lies(tmp_path: Path) -> None:
    for name in ("stories", "toxicity"):
        shutil.copytree(bundled.folder(name), tmp_path / name)

    def found(model: Path | str, classifier: Path | str) -> str:
        return Target(str(model), Classifier(classifier, "toxic"), "Once", 4).fingerprint

    same = found("stories", "toxicity")
    assert found(tmp_path / "stories", tmp_path / "toxicity") == same
    assert found(tmp_path / "stories", tmp_path / "toxicity") == same
    (tmp_path / "toxicity" / "README.md").write_text("a card")
    assert found(tmp_path / "stories", tmp_path / "toxicity") == same
    edited(tmp_path / "stories", "weight")
    weights = found(tmp_path / "stories", tmp_path / "toxicity")
    edited(tmp_path / "toxicity", "weight")
    scores = found(tmp_path / "stories", tmp_path / "toxicity")
    tokenizer = tmp_path / "stories" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"normalizer"', '"normalizer" ', 1))
    assert len({same, weights, scores, found(tmp_path / "stories", tmp_path / "toxicity")}) == 4


def test_draws_of_one_target_do_not_certify_another(tmp_path: Path) -> None:
    def target(scale: float, lm: Any = None) -> Target:
        return Target(lm or tiny_lm(), Function(numbers(scale), log_upper_bound=0.0), "5", 3, eos="ignore")

    path = tmp_path / "draws.safetensors"
    target(0.1).collect(Rng(0), num_samples=None, max_draws=256, chunk=256, path=path)
    small = {"num_particles": (2,), "num_samples": 16, "budget": 16, "draws": path}
    assert certify(target(0.1), **small).divergences.kl_target_q is not None
    for other in (target(0.2), target(0.1, tiny_lm(scale=3.0))):
        with pytest.raises(ExactSamplesError, match="another target"):
            certify(other, **small)


def test_an_unidentifiable_target_works_but_its_file_is_not_taken_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Locked:
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def __call__(self, texts: list[str]) -> list[float]:
            return [-len(text) / 20 for text in texts]

    def target(**options: Any) -> Target:
        return Target(tiny_lm(), Function(Locked(), log_upper_bound=0.0), "5", 3, eos="ignore", **options)

    path, how = tmp_path / "draws.safetensors", {"num_samples": None, "max_draws": 64, "chunk": 64}
    one = target()
    assert len(one.collect(Rng(0), path=path, **how).draws) == 64
    assert "cannot be identified (Locked holds what cannot be read" not in caplog.text
    assert "cannot be identified (lock holds what cannot be read" in caplog.text
    for each in (one, target()):
        with pytest.raises(ExactSamplesError, match="identity='my-target-v1'"):
            each.collect(Rng(0), path=path, **how)
    assert one.fingerprint != target().fingerprint
    named = tmp_path / "named.safetensors"
    target(identity="lengths-1").collect(Rng(0), path=named, **how)
    assert len(load(named, target(identity="lengths-1").fingerprint).draws) == 64
    with pytest.raises(ExactSamplesError, match="another target"):
        load(named, target(identity="lengths-2").fingerprint)


def test_an_identity_is_kept_with_the_target() -> None:
    target = Target("stories", Regex("a"), "Once", 4, identity="mine")
    assert Target.from_spec(json.loads(json.dumps(target.spec()))).fingerprint == target.fingerprint
