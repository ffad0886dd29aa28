"""Draws are believed only if they are what they say, and prove nothing about what was trained on them."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.architectures import tiny_lm
from tests.cases import TablePotential, cases
from twistlm import Run, Target, train
from twistlm.core.errors import ExactSamplesError, RunError, TwistError, UpperBoundError
from twistlm.core.rng import Rng
from twistlm.core.storage import load_tensors, save_tensors
from twistlm.models.tabular import TabularLM
from twistlm.potentials import Function, Infilling
from twistlm.potentials.base import evaluate
from twistlm.runs.certify import certify
from twistlm.runs.config import RunConfig
from twistlm.sampling.exact import collect as exact
from twistlm.sampling.exact import file as draws_file
from twistlm.sampling.exact.budget import Budget
from twistlm.sampling.exact.collection import Collection
from twistlm.sampling.exact.file import Stream
from twistlm.sampling.exact.origins import Origins
from twistlm.sampling.exact.provenance import Seen, refuse_offered
from twistlm.sampling.sampler import Sampler, WorkerContext
from twistlm.sampling.smc import Keep
from twistlm.sampling.twisted import TwistedLM
from twistlm.training.config import TrainingConfig

SMALL: dict[str, Any] = {"num_samples": None, "max_draws": 96, "chunk": 32}


def lengths(texts: list[str]) -> list[float]:
    return [-(len(text) % 7) / 3 for text in texts]


def seen(collection: Collection) -> Seen:
    return Seen([collection], Origins.of([collection]))


def the_target(**options: Any) -> Target:
    return Target(tiny_lm(), Function(lengths, log_upper_bound=0.0), "5 6", 4, **options)


@pytest.fixture(scope="module")
def target() -> Target:
    return the_target()


@pytest.fixture(scope="module")
def made(target: Target, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], dict[str, Any], Path]:
    """Tensors and metadata of a good file, and where it is."""
    path = tmp_path_factory.mktemp("draws") / "draws.safetensors"
    target.collect(Rng(3), path=path, keep=Keep(features=True, siblings=2), **SMALL)
    return *load_tensors(path), path


def rewritten(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Path:
    """A file whose hash is right: whoever changed it knew how to make one."""
    rest = {name: value for name, value in metadata.items() if name not in ("content", "streams", "format")}
    streams = tuple(Stream(each["seed"], tuple(each["path"]), each["count"]) for each in metadata["streams"])
    draws_file.write(path, tensors, rest, streams)
    return path


def test_a_good_file_is_taken(target: Target, made: Any) -> None:
    found = target.draws(made[2])
    assert len(found.draws) == 96
    assert [asdict(each) for each in found.streams] == [
        {"seed": 3, "path": ("collect", k), "count": 32} for k in range(3)
    ]
    assert 0 < len(found.exact) < 96


Change = Callable[[dict[str, Tensor], dict[str, Any]], None]


def put(name: str, index: Any, value: Any) -> Change:
    def change(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        tensors[name] = tensors[name].clone()
        tensors[name][index] = value

    return change


def made_of(name: str, function: Callable[[Tensor], Tensor]) -> Change:
    """Another tensor from the one that is there."""
    return lambda tensors, metadata: tensors.update({name: function(tensors[name]).contiguous()})


def drop(name: str) -> Change:
    def change(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        del tensors[name]

    return change


def say(**values: Any) -> Change:
    return lambda tensors, metadata: metadata.update(values)


def exchanged(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Every draw has another's φ, and was accepted accordingly."""
    tensors["log_phi"] = tensors["log_phi"].flip(0)
    bound, streams = metadata["log_upper_bound"], metadata["streams"]
    uniforms = draws_file.joined(tuple(Stream(x["seed"], tuple(x["path"]), x["count"]) for x in streams))
    tensors["accepted"] = draws_file.accepts(tensors["log_phi"] - bound, uniforms)


def cut_short(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    early = torch.arange(4) < 2
    tensors["mask"], tensors["log_p"] = tensors["mask"] & early, tensors["log_p"] * early


def conditioned(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    tensors["conditions"] = tensors["tokens"][:, :2].contiguous()


def all_by_construction(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    conditioned(tensors, metadata)
    tensors["accepted"] = torch.ones(96, dtype=torch.bool)
    metadata["kind"] = "joint"


def other_streams(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    metadata["streams"] = [{**each, "seed": each["seed"] + 1} for each in metadata["streams"]]


def one_stream(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    metadata["streams"] = [metadata["streams"][0]] * 3


def emptied(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    for name in tensors:
        if not name.startswith("prompt."):
            tensors[name] = tensors[name][:0].contiguous()


ALL = slice(None)
DAMAGE: dict[str, Change] = {
    "all accepted": put("accepted", ALL, True),
    "none accepted": put("accepted", ALL, False),
    "one more accepted": made_of("accepted", lambda x: x ^ (torch.arange(96) == 7)),
    "log φ above its bound": put("log_phi", 5, 0.1),
    "log φ NaN": put("log_phi", 0, math.nan),
    "log φ inf": put("log_phi", 0, math.inf),
    "log φ exchanged": exchanged,
    "log p NaN": put("log_p", (3, 1), math.nan),
    "log p above 0": put("log_p", (3, 1), 0.5),
    "log p -inf": put("log_p", (3, 1), -math.inf),
    "log p exchanged": made_of("log_p", lambda x: x.flip(0)),
    "tokens negative": put("tokens", (0, 0), -1),
    "tokens out of range": put("tokens", (0, 0), 10**6),
    "tokens others": made_of("tokens", lambda x: (x + 1) % 300),
    "features exchanged": made_of("features", lambda x: x.flip(0)),
    "features NaN": put("features", ALL, math.nan),
    "features narrow": made_of("features", lambda x: x[..., :3]),
    "siblings negative": put("siblings", (0, 0, 0), -4),
    "siblings out of range": put("siblings", (0, 0, 0), 300),
    "mask goes on": made_of("mask", lambda x: torch.tensor([True, False, True, True]).expand(96, 4)),
    "mask elsewhere": cut_short,
    "mask empty": put("mask", ALL, False),
    "prompt another": put("prompt.0", 0, 9),
    "prompt empty": made_of("prompt.0", lambda x: x[:0]),
    "prompt index": put("prompt_index", 0, 4),
    "prompt index negative": put("prompt_index", 0, -1),
    "conditions": conditioned,
    "exact by construction": all_by_construction,
    "unknown tensor": lambda tensors, metadata: tensors.update(extra=torch.zeros(3)),
    "no draws": emptied,
    "bound raised": say(log_upper_bound=1.0),
    "bound lowered": say(log_upper_bound=-1.0),
    "other kind": say(kind="smc"),
    "other target": say(target="0" * 16),
    "no streams": say(streams=[]),
    "another's streams": other_streams,
    "one stream": one_stream,
    **{f"no {name}": drop(name) for name in (*draws_file.NEEDED, "prompt.0")},
    **{f"short {name}": made_of(name, lambda x: x[:-1]) for name in (*draws_file.NEEDED, "features", "siblings")},
    **{f"float {name}": made_of(name, lambda x: x.half()) for name in draws_file.NEEDED},
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_a_file_that_was_changed_with_care_is_refused(damage: str, target: Target, made: Any, tmp_path: Path) -> None:
    tensors, metadata = dict(made[0]), dict(made[1])
    DAMAGE[damage](tensors, metadata)
    path = rewritten(tmp_path / "draws.safetensors", tensors, metadata)
    with pytest.raises((ExactSamplesError, RunError)) as refusal:
        target.draws(path)
    assert "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize(
    "said",
    [
        {"log_upper_bound": math.nan}, {"log_upper_bound": math.inf}, {"log_upper_bound": "0"}, {"format": 1},
        {"format": None}, {"streams": 3}, {"streams": [{"seed": 1}]},
        {"streams": [{"seed": 0, "path": [], "count": -96}]},
        {"content": "0" * 64}, {"content": None}, {"surprise": 1}, {"target": 7}, {"kind": None},
    ],
)  # fmt: skip
def test_metadata_that_says_anything_else_is_refused(
    said: dict[str, Any], target: Target, made: Any, tmp_path: Path
) -> None:
    path = tmp_path / "draws.safetensors"
    save_tensors(path, made[0], {**made[1], **said})
    with pytest.raises((ExactSamplesError, RunError)):
        target.draws(path)


def test_draws_of_an_earlier_version_say_so(target: Target, made: Any, tmp_path: Path) -> None:
    old = {"format": 1, "kind": "rejection", "target": "0" * 16, "log_upper_bound": 0.0, "num_chunks": 3}
    save_tensors(tmp_path / "old.safetensors", made[0], old)
    with pytest.raises(ExactSamplesError, match=r"is of format 1 and this version reads format 2.*collect them again"):
        target.draws(tmp_path / "old.safetensors")


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_change_of_any_number_passes(data: st.DataObject, target: Target, made: Any) -> None:
    """The hash knows of every change that was made without care."""
    tensors, metadata, path = dict(made[0]), made[1], made[2].with_name("fuzzed.safetensors")
    name = data.draw(st.sampled_from(sorted(tensors)))
    tensor = tensors[name].clone().flatten()
    at = data.draw(st.integers(0, tensor.numel() - 1))
    special = (
        [0, 1, -1, 299, 300, 2**31 - 1]
        if not tensor.is_floating_point()
        else [0.0, math.nan, math.inf, -math.inf, -1.0, 1e30]
    )
    value = torch.tensor(data.draw(st.sampled_from(special))).to(tensor.dtype)
    same = bool(tensor[at] == value)
    tensor[at] = value
    tensors[name] = tensor.view(tensors[name].shape)
    save_tensors(path, tensors, metadata)
    if same:
        target.draws(path)
    else:
        with pytest.raises((ExactSamplesError, RunError)):
            target.draws(path)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(at=st.integers(0, 10**6), byte=st.integers(0, 255), cut_off=st.booleans())
def test_no_damage_to_the_bytes_is_anything_but_an_error_of_ours(
    at: int, byte: int, cut_off: bool, target: Target, made: Any
) -> None:
    content, path = bytearray(made[2].read_bytes()), made[2].with_name("bytes.safetensors")
    at %= len(content)
    same = content[at] == byte and not cut_off
    content[at] = byte
    path.write_bytes(content[:at] if cut_off else content)
    if same:
        target.draws(path)
        return
    with pytest.raises(TwistError):
        target.draws(path)


def test_a_collection_with_a_wrong_flag_gives_no_exact_samples(target: Target, made: Any) -> None:
    found = target.draws(made[2])
    with pytest.raises(ExactSamplesError, match="marked as accepted"):
        _ = replace(found, accepted=torch.ones(96, dtype=torch.bool)).exact
    for part in found.split((0.5, 0.25)):
        assert len(part.exact) == int(part.accepted.sum())


def test_nan_and_infinity_bound_nothing(tmp_path: Path) -> None:
    lm, table = TabularLM.random(3, 4, 0, eos_token_id=0), torch.tensor([0.5, 3.0, -1.0])
    for bound in (math.nan, math.inf, -math.inf):
        potential = TablePotential(table, 3)
        object.__setattr__(potential, "log_upper_bound", bound)
        with pytest.raises(UpperBoundError, match=f"declares {bound}"):
            exact.collect(
                Rng(0),
                WorkerContext(Sampler(TwistedLM(lm, None, "ignore"), potential, 2), cases([torch.tensor([1])])[0]),
                Budget(8),
                target="t",
            )
    object.__setattr__(potential, "log_upper_bound", math.nan)
    with pytest.raises(UpperBoundError, match="bounds nothing"):
        evaluate(potential, [torch.tensor([1])], torch.tensor([[1, 1]]))


# --- Draws that were seen ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = RunConfig(
        twist="low_rank", num_draws=96, chunk=32, num_siblings=0,
        training=TrainingConfig(target_source="draws", intermediate_source="draws", num_particles=32, num_updates=2),
    )  # fmt: skip
    return train(the_target(), config=config, out=tmp_path_factory.mktemp("run") / "run")


HOW: dict[str, Any] = {"num_particles": (2,), "num_samples": 16, "budget": 16}


def test_draws_that_trained_a_run_do_not_certify_it(run: Run, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    collected = the_target().collect(Rng(0), path=again, **SMALL)
    assert run.collection is not None
    assert collected.draws.tokens.equal(run.collection.draws.tokens), "the default seed repeats a run's own draws"
    for path in (again, run.folder.draws if run.folder else again):
        with pytest.raises(
            ExactSamplesError, match=r"training has seen \(stream 0/collect/0 in both\).*another --seed"
        ):
            certify(run.target, run, draws=path, **HOW)
        with pytest.raises(ExactSamplesError, match="training has seen"):
            certify(run, run, draws=path, **HOW)
    assert certify(run.target, "base", draws=again, **HOW).divergences.kl_target_q is not None
    others = tmp_path / "others.safetensors"
    the_target().collect(Rng(0, ("twistlm collect",)), path=others, **SMALL)
    assert certify(run.target, run, draws=others, **HOW).divergences.kl_target_q is not None


def test_the_same_sequences_are_known_under_another_name_but_short_ones_may_coincide(run: Run) -> None:
    assert run.collection is not None
    renamed = replace(run.collection, streams=(Stream(9, ("elsewhere",), 96),))
    # Four tokens of this model: e⁻²⁰ pairs are never reached, so that coincidences are legitimate.
    refuse_offered(renamed, seen(run.collection), "a file")
    log_p = renamed.draws.log_p * 10
    improbable = replace(renamed, draws=replace(renamed.draws, log_p=log_p, log_q=log_p))
    with pytest.raises(ExactSamplesError, match=r"sequences in both"):
        refuse_offered(improbable, seen(replace(run.collection, draws=improbable.draws)), "a file")
    # Under a constraint that leaves few of them, what p₀ never draws twice comes again and again.
    constrained = replace(renamed, draws=replace(improbable.draws, log_q=renamed.draws.log_p))
    refuse_offered(constrained, seen(replace(run.collection, draws=constrained.draws)), "a file")


def test_origins_are_the_same_after_being_written(run: Run) -> None:
    assert run.collection is not None
    origins = Origins.of(run.collection.split((0.3, 0.6)))
    values = json.loads(json.dumps(origins.as_list()))
    assert Origins.from_list(values, "a file") == origins
    assert sum(end - start for each in values for start, end in each["ranges"]) == round(0.9 * 96)
    values[0]["ranges"] = [[0, 10**12]]
    with pytest.raises(RunError, match=r"a file is damaged: draws 0 to 1000000000000 of a stream of 32"):
        Origins.from_list(values, "a file")


def test_a_run_checks_its_draws_when_it_is_opened(run: Run, tmp_path: Path) -> None:
    assert run.folder is not None
    path = run.folder.draws
    whole = path.read_bytes()
    tensors, metadata = load_tensors(path)
    try:
        put("accepted", ALL, True)(tensors, metadata)
        rewritten(path, tensors, metadata)
        with pytest.raises(ExactSamplesError, match="accepted is not what its random numbers say"):
            Run.load(run.folder.path, target=the_target())
    finally:
        path.write_bytes(whole)
    assert Run.load(run.folder.path, target=the_target()).collection is not None


def test_draws_with_conditions_are_checked_as_such(tmp_path: Path) -> None:
    def infilling() -> Target:
        return Target(tiny_lm(), Infilling(2), "5 6", 4, eos="ignore")

    path = tmp_path / "joint.safetensors"
    infilling().collect(Rng(0), path=path, **SMALL)
    found: Collection = infilling().draws(path)
    assert found.uniforms is None
    assert len(found.exact) == 96
    tensors, metadata = load_tensors(path)
    put("accepted", 3, False)(tensors, metadata)
    with pytest.raises(ExactSamplesError, match="accepted is not"):
        infilling().draws(rewritten(path, tensors, metadata))
    put("accepted", 3, True)(tensors, metadata)
    tensors["conditions"] = tensors["conditions"].flip(0).contiguous()
    with pytest.raises(ExactSamplesError, match="not what they say"):
        infilling().draws(rewritten(path, tensors, metadata))
