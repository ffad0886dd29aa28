"""What a program needs to write its calls with types is exported."""

import inspect
import typing
from collections.abc import Iterator
from typing import Any

import twistlm
from twistlm import Run, Target, types


def classes(hint: Any) -> Iterator[type]:
    """Those of twistlm that an annotation is made of."""
    if isinstance(hint, type) and hint.__module__.startswith("twistlm"):
        yield hint
    for part in typing.get_args(hint):
        for each in part if isinstance(part, list) else [part]:
            yield from classes(each)


def test_every_exported_name_is_there() -> None:
    for module in (twistlm, types):
        assert list(module.__all__) == sorted(module.__all__)
        for name in module.__all__:
            assert getattr(module, name) is not None


def test_what_options_are_made_of_is_exported() -> None:
    exported = [getattr(module, name) for module in (twistlm, types) for name in module.__all__]
    functions = [each for each in exported if inspect.isfunction(each)]
    assert {each.__name__ for each in functions} == {"certify", "chat", "engine", "fine_tune", "probability", "train"}
    functions += [Run.load, Run.from_pretrained, Run.evaluate, Run.sample, Target.at, Target.from_spec]
    functions += [each.__init__ for each in exported if inspect.isclass(each) and each.__name__.endswith("Config")]
    functions += [twistlm.Spending.__init__, twistlm.Effort.__init__, twistlm.Search.__init__]
    names = {"Target": Target, "Certificate": twistlm.Certificate, "Run": Run}
    found = {each for function in functions
             for hint in typing.get_type_hints(function, localns=names).values() for each in classes(hint)}  # fmt: skip
    assert {twistlm.EvaluationConfig, twistlm.TrainingConfig, twistlm.Search, twistlm.Effort, types.Engine} <= found
    assert not [each for each in found if each not in exported]
