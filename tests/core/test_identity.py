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
    import math, re, functools

    LIMIT = {limit}
    WORDS = frozenset(["good", "bad", "ugly", "old"])
    _model = None

    def helper(text):
        return {helper}

    def made(factor):
        def inner(texts, power={default}):
            return [factor * helper(text) ** power if text in {{"good", "bad", "ugly"}} else LIMIT for text in texts]
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

    def lazily(texts):
        global _model
        if _model is None:
            _model = [object()] + [len(texts)]
        return [0.0 for _ in texts]

    score = made({closure})
    lam = lambda texts: [{rate} * len(WORDS & set(text.split())) for text in texts]
    obj = Scorer({{"good", "bad", "{word}"}})
"""
VALUES = {"limit": 3, "helper": "len(text)", "default": 2, "rate": 0.5, "closure": 7, "word": "ugly"}


def module(name: str = "scores", **changes: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    exec(compile(textwrap.dedent(MODULE).format(**VALUES | changes), "scores.py", "exec"), made.__dict__)
    return made


def digests(**changes: Any) -> dict[str, str]:
    made = module(**changes)
    return {name: digest(getattr(made, name)) for name in ("score", "lam", "obj")}


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({"limit": 4}, {"score"}), ({"helper": "-len(text)"}, {"score"}), ({"default": 3}, {"score"}),
        ({"closure": 8}, {"score"}), ({"rate": 0.25}, {"lam", "obj"}), ({"word": "old"}, {"obj"}),
        ({"name": "moved"}, set()),
    ],
)  # fmt: skip
def test_a_function_is_its_code_and_all_that_it_reads(changes: dict[str, Any], changed: set[str]) -> None:
    before, after = digests(), digests(**changes)
    assert {name for name in before if before[name] != after[name]} == changed


def test_functions_and_models_are_the_same_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "scores.py").write_text(textwrap.dedent(MODULE).format(**VALUES))
    code = """if True:
        import json, scores
        from tests.architectures import tiny_lm
        from twistlm import Target
        from twistlm.core.identity import digest
        found = [digest(getattr(scores, name)) for name in ("score", "lam", "obj")]
        target = Target(tiny_lm(), lambda texts: [-float(len(text) in {3, 5, 8, 13}) for text in texts], "5", 4)
        print(json.dumps([*found, target.fingerprint]))
    """
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2]), *sys.path])
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert outputs[0] == outputs[1]
    assert json.loads(outputs[0])[:3] == list(digests().values())


def test_what_is_worked_out_once_and_kept_changes_nothing() -> None:
    made = module()
    before = digest(made.obj), digest(made.lazily)
    made.obj(["good"])
    made.lazily(["a"])
    assert (digest(made.obj), digest(made.lazily)) == before


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

    other = types.FunctionType(length.__code__, globals(), "other")
    assert digest(Scaled(length, 1.0)) != digest(Scaled(length, 2.0))
    assert digest(Scaled(length, 1.0)) == digest(Scaled(other, 1.0)), "what it is called"


class Network(torch.nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self._scale = scale


def test_what_a_network_keeps_to_itself_counts() -> None:
    assert digest(Network(1.0)) != digest(Network(2.0))
    assert digest(Network(1.0)) == digest(Network(1.0).eval())


READERS = {
    "chain": "import mine.deep\ndef phi(text):\n    return mine.deep.score(text)",
    "inside": "def phi(text):\n    import mine.deep as deep\n    return deep.score(text)",
    "from": "def phi(text):\n    from mine.deep import score\n    return score(text)",
    "relative": "__package__ = 'mine'\ndef phi(text):\n    from . import deep\n    return deep.score(text)",
    "enclosing": "def made():\n    import mine.deep\n    return lambda text: mine.deep.score(text)\nphi = made()",
    "by name": "from mine import deep\ndef phi(text):\n    return getattr(deep, 'sco' 're')(text)",
}


@pytest.mark.parametrize("reader", READERS)
def test_what_is_in_modules_of_the_users_counts(reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine").mkdir()

    def found(deep: str) -> str:
        """With the module `mine.deep` of that code, wherever it has not been imported yet."""
        for name in ("mine", "mine.deep"):
            sys.modules.pop(name, None)
        (tmp_path / "mine" / "__init__.py").write_text("import mine\nLIMIT = 3\n")
        (tmp_path / "mine" / "deep.py").write_text(deep)
        importlib.invalidate_caches()
        namespace: dict[str, Any] = {"__name__": "scores"}
        exec(READERS[reader], namespace)
        before = digest(namespace["phi"])
        namespace["phi"]("a")
        assert digest(namespace["phi"]) == before
        return before

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    one = found("def score(text):\n    return 1.0\n")
    assert found("def score(text):\n    return 1.0\n") == one
    assert found("def score(text):\n    return 2.0\n") != one
    unrelated = found("def score(text):\n    return 1.0\ndef other(text):\n    return 2.0\n")
    assert (unrelated == one) == (reader != "by name")


def test_an_import_that_is_not_here_is_done_without() -> None:
    def phi(text: str) -> float:
        try:
            import no_such_module  # type: ignore[import-not-found]
        except ImportError:
            return 0.0
        return float(no_such_module.score(text))

    assert digest(phi) == digest(phi)


MEMORIES = """
    from collections import Counter, deque

    KNOWN, SEEN, CALLS, LAST, WEIGHTS = {}, set(), Counter(), deque(), {"a": 1.0}

    def phi(text):
        if text.lower() not in KNOWN:
            KNOWN[text.lower()] = 1.0
        SEEN.add(text)
        CALLS["phi"] += 1
        LAST.append(text)
        found = {}
        found[text] = WEIGHTS["a"]
        return found[text]

    def remembering(function):
        known = {}
        def inner(text):
            if text not in known:
                known[text] = function(text)
            return known[text]
        return inner

    twice = remembering(lambda text: 2.0 * WEIGHTS["a"])
"""


@pytest.mark.parametrize("name", ["phi", "twice"])
def test_what_a_function_remembers_changes_nothing(name: str) -> None:
    namespace: dict[str, Any] = {}
    exec(textwrap.dedent(MEMORIES), namespace)
    before = digest(namespace[name])
    namespace[name]("A")
    assert digest(namespace[name]) == before
    namespace["WEIGHTS"]["a"] = 2.0
    assert digest(namespace[name]) != before, "it only reads these"


def test_the_order_of_rules_counts_and_that_of_settings_does_not() -> None:
    def first_of(rules: dict[str, float]) -> Callable[[str], float]:
        return lambda text: next((value for pattern, value in rules.items() if pattern in text), 0.0)

    class Rules:
        def __init__(self, **rules: Any) -> None:
            self.__dict__.update(rules)

    ab, ba = {"a": 1.0, "b": 2.0}, {"b": 2.0, "a": 1.0}
    assert digest(first_of(ab)) != digest(first_of(ba))
    assert digest(Rules(rules=ab)) != digest(Rules(rules=ba))
    assert digest(Rules(**ab)) == digest(Rules(**ba))
    assert digest([ab]) == digest([ba])
    assert digest(functools.partial(print, **ab)) == digest(functools.partial(print, **ba))


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
