"""Opening data runs no code: nothing that a folder names is imported, run or downloaded unless the user does."""

import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from twistlm import Run, Target, train
from twistlm.cli import main
from twistlm.core.errors import ConfigError, ModelError, TwistError
from twistlm.models.bundled import folder as bundled
from twistlm.models.huggingface import load
from twistlm.potentials import Classifier, Function, from_spec
from twistlm.runs.config import EvaluationConfig, RunConfig
from twistlm.training.config import TrainingConfig

HOSTILE = """
import pathlib
pathlib.Path({marker!r}).write_text("imported")
def score(texts):
    pathlib.Path({marker!r}).write_text("called")
    return [0.0 for text in texts]
"""
CONFIG = RunConfig(
    twist="low_rank",
    training=TrainingConfig(loss="gkl", target_source="draws", intermediate_source="draws", num_updates=1),
    num_draws=64, num_siblings=0, evaluation=EvaluationConfig((2,), 8, 4),
)  # fmt: skip

# Without base draws.
SAMPLED = TrainingConfig(
    loss="gkl", target_source="proposal", intermediate_source="proposal", num_particles=16, num_updates=1
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    train(Target("stories", Classifier("sentiment", "positive"), "Once", 2, eos="ignore"), config=CONFIG, out=path)
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    path = Path(shutil.copytree(finished, tmp_path / "run"))
    # Who forges a folder leaves out what its target would be known by.
    fields = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({name: fields[name] for name in fields if name != "fingerprint"}))
    return path


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that appears when the module `hostile_module` is imported, or a connection is opened."""
    path = tmp_path / "it-ran"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "hostile_module.py").write_text(HOSTILE.format(marker=str(path)))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.delitem(sys.modules, "hostile_module", raising=False)

    def connect(*arguments: Any) -> None:
        path.write_text(f"connected to {arguments[1:]}")
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **more: connect(None, *arguments))
    return path


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where strings, lists and objects stand in JSON."""
    if at and isinstance(value, (str, dict, list)):
        yield at
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in children:
        yield from places(child, (*at, name))


def replaced(config: dict[str, Any], at: tuple[Any, ...], value: Any) -> dict[str, Any]:
    copy = json.loads(json.dumps(config))
    inner = copy
    for name in at[:-1]:
        inner = inner[name]
    inner[at[-1]] = value
    return copy


ATTACKS = (
    {"import": "hostile_module:score"},
    {"name": "function", "function": {"import": "hostile_module:score"}},
    {"name": "power", "potential": {"name": "function", "function": {"import": "hostile_module:score"}}, "beta": 2.0},
    "hostile_module:score",
    "hostile_module",
    "somebody/else",
)


def test_no_field_of_a_config_runs_anything(run: Path, marker: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    found = list(places(config))
    assert {("target", "potential", "model"), ("run", "twist"), ("target", "prompt"), ("run", "training", "loss")} <= {
        *found
    }
    loaded = 0
    for at in found:
        for attack in ATTACKS:
            (run / "config.json").write_text(json.dumps(replaced(config, at, attack)))
            with suppress(TwistError):
                Run.load(run)
                loaded += 1
            assert not marker.exists(), (at, attack, marker.read_text())
    # A prompt may be any text, and versions are a record: not everything is refused, so the test went all the way.
    assert loaded > 0


def test_a_function_of_a_run_is_imported_only_if_it_is_trusted_by_name(
    run: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((run / "config.json").read_text())
    described = {"name": "function", "function": {"import": "hostile_module:score"}, "log_upper_bound": 0.0}
    (run / "config.json").write_text(json.dumps(replaced(config, ("target", "potential"), described)))
    (run / "draws.safetensors").unlink()
    arguments = ["sample", str(run), "--num-samples", "1"]
    for more in ([], ["--trust-function", "hostile_module:other"], ["--trust-function", "hostile_module"]):
        assert main([*arguments, *more]) == 2
        printed = capsys.readouterr().err
        assert "'hostile_module:score'" in printed
        assert "--trust-function" in printed
        assert printed.count("\n") == 1
        assert not marker.exists()
    for command in ("evaluate", "certify"):
        assert main([command, str(run)]) == 2
    assert main(["certify", "toxicity", "--proposal", str(run), "--num-draws", "0"]) == 2
    assert not marker.exists()
    with pytest.raises(ConfigError, match="hostile_module:score"):
        Run.load(run, trust_functions=("hostile_module:other",))
    # A name is a name, and not where others may be found in it.
    with pytest.raises(ConfigError, match="hostile_module:score"):
        Run.load(run, trust_functions="hostile_module:scores")
    assert not marker.exists()
    assert main([*arguments, "--trust-function", "math:sin", "--trust-function", "hostile_module:score"]) == 0
    assert marker.read_text() == "called"


@pytest.mark.parametrize("trust", [True, "hostile_module:score", ["hostile_module:score"]])
def test_a_folder_from_elsewhere_runs_what_it_names_only_if_all_is_trusted_or_its_name(
    tmp_path: Path, marker: Path, trust: bool | str | list[str]
) -> None:
    score = importlib.import_module("hostile_module").score
    train(Target("stories", Function(score, log_upper_bound=0.0), "Once", 2), config=CONFIG).save_pretrained(
        tmp_path / "from-elsewhere"
    )
    described = json.loads((tmp_path / "from-elsewhere" / "config.json").read_text())["target"]
    del sys.modules["hostile_module"]
    marker.unlink()
    openings = (
        lambda **how: Run.load(tmp_path / "from-elsewhere", **how),
        lambda **how: Run.from_pretrained(tmp_path / "from-elsewhere", **how),
        lambda **how: Target.from_spec(described, **how),
    )
    for opening in openings:
        for distrust in ({}, {"trust_functions": False}, {"trust_functions": ()}):
            with pytest.raises(ConfigError, match=r"--trust-function .* trust_functions=True"):
                opening(**distrust)
            assert "hostile_module" not in sys.modules
            assert not marker.exists()
    for opening in openings:
        opened = opening(trust_functions=trust)
        assert opened.target.check() is None if isinstance(opened, Run) else opened.check() is None
        assert marker.read_text() == "called"
        marker.unlink()


def test_what_names_no_function_is_one_line_even_if_all_is_trusted() -> None:
    for path in (5, ["math:sin"], "math", ".math:sin", ":sin", "math:no_such"):
        with pytest.raises(ConfigError, match="the potential's function"):
            from_spec({"name": "function", "function": {"import": path}}, True)


def test_a_run_of_a_function_of_ones_own_is_opened_with_its_name(tmp_path: Path, marker: Path) -> None:
    score = importlib.import_module("hostile_module").score
    train(Target("stories", Function(score, log_upper_bound=0.0), "Once", 2), config=CONFIG, out=tmp_path / "own")
    with pytest.raises(ConfigError, match="trust it"):
        Run.load(tmp_path / "own")
    assert Run.load(tmp_path / "own", trust_functions=("hostile_module:score",)).sample(2).texts
    assert marker.exists()


def test_a_function_that_has_changed_is_refused(tmp_path: Path, marker: Path) -> None:
    """A run without draws did not know what it had been trained for."""
    module = importlib.import_module("hostile_module")
    config, out = replace(CONFIG, num_draws=0, training=SAMPLED), tmp_path / "own"
    target = Target("stories", Function(module.score, log_upper_bound=0.0), "Once", 2)
    train(target, config=config, out=out).save_pretrained(tmp_path / "published")
    trusted: dict[str, Any] = {"trust_functions": "hostile_module:score"}
    for place in (out, tmp_path / "published"):
        assert Run.load(place, **trusted).target.fingerprint == target.fingerprint
    exec("def score(texts):\n    return [-1.0 for text in texts]", module.__dict__)
    for place in (out, tmp_path / "published"):
        with pytest.raises(ModelError, match=r"or a classifier or function of .*, is not what the run was made with"):
            Run.load(place, **trusted)
    # Older versions did not say what it was of.
    fields = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({name: fields[name] for name in fields if name != "fingerprint"}))
    assert Run.load(out, **trusted).target.potential.function is module.score


def test_a_run_on_a_loaded_model_is_opened_by_its_folder(tmp_path: Path) -> None:
    target = Target(load("stories"), Classifier("sentiment", "positive"), "Once", 2)
    run = train(target, config=replace(CONFIG, num_draws=0, training=SAMPLED), out=tmp_path / "run")
    run.save_pretrained(tmp_path / "published")
    for place in ("run", "published"):
        assert Run.load(tmp_path / place).sample(2).texts == run.sample(2).texts


def test_a_command_for_a_prompt_is_not_executed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((run / "config.json").read_text())
    config["target"]["potential"] = {"name": "function", "function": {"import": "subprocess:getoutput"}}
    config["target"]["prompt"] = f"touch {tmp_path / 'executed'}"
    (run / "config.json").write_text(json.dumps(config))
    assert main(["sample", str(run)]) == 2
    assert "'subprocess:getoutput'" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder of a model, to be tampered with."""
    return Path(shutil.copytree(bundled("stories"), tmp_path / "model"))


def test_code_that_comes_with_a_model_is_not_run(model: Path, marker: Path) -> None:
    shutil.copy(marker.parent / "modules" / "hostile_module.py", model)
    own = "hostile_module.Own"
    for config, classes in (
        ("config.json", {"AutoConfig": own, "AutoModelForCausalLM": own}),
        ("tokenizer_config.json", {"AutoTokenizer": [own, None]}),
    ):
        fields = json.loads((model / config).read_text())
        fields |= {"auto_map": classes, "model_type": "unknown-so-far", "tokenizer_class": "Own"}
        (model / config).write_text(json.dumps(fields))
        with pytest.raises(ModelError, match="cannot load model"):
            load(str(model))
        assert not marker.exists()


def test_a_kernel_of_the_hub_is_not_fetched(model: Path, marker: Path) -> None:
    fields = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(fields | {"attn_implementation": "somebody/kernel"}))
    with pytest.raises(ModelError, match="'somebody/kernel'"):
        load(str(model))
    assert not marker.exists()


def test_an_adapter_in_a_folder_fetches_no_base_model(model: Path, marker: Path) -> None:
    fields = {"base_model_name_or_path": "somebody/else", "peft_type": "LORA", "r": 1, "target_modules": ["q_proj"]}
    (model / "adapter_config.json").write_text(json.dumps(fields))
    (model / "config.json").unlink()
    with pytest.raises(ModelError, match="cannot load model"):
        load(str(model))
    assert not marker.exists()


def test_a_model_that_was_downloaded_before_is_read_from_there(model: Path, tmp_path: Path) -> None:
    """A hub name in a folder is fine where its files are: laid out as the hub's client lays them out."""
    pattern = {"name": "regex", "pattern": "a"}
    described = {"model": "somebody/else", "potential": pattern, "prompt": "a", "num_tokens": 2}
    with pytest.raises(ModelError, match="'somebody/else'"):
        Target.from_spec(described)
    cache = tmp_path / "hub" / "models--somebody--else"
    shutil.copytree(model, cache / "snapshots" / "abc")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    code = f"from twistlm import Target; assert Target.from_spec({described!r}).lm.vocab_size > 0"
    # Nobody listens there.
    hub = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | hub)
