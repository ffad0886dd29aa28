"""A folder of `twistlm probability` that is damaged: one line that names the file, and everything as it was."""

import importlib.util
import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from tests.architectures import tiny_lm
from tests.fuzz.folders import damage
from tests.fuzz.harness import contents
from twistlm import Search, Target
from twistlm.cli import main
from twistlm.core.errors import RunError
from twistlm.potentials import Function
from twistlm.runs.probability import load, probability

SEARCH = ["probability", "Once upon a time", "--regex", "e", "--thresholds", "1", "--num-tokens", "3", "--num-draws",
          "64", "--num-samples", "64", "--max-rounds", "1"]  # fmt: skip

# No search says so.
NEVER = {"value": 0, "low": 0, "high": 0, "n": 1}


@pytest.fixture(autouse=True)
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWISTLM_PROGRESS", "0")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "found"
    assert main([*SEARCH, "--out", str(out)]) == 0
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "found"))


def refused(out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that resuming is refused with; nothing has changed."""
    before = contents(out)
    assert main([*SEARCH, "--out", str(out), "--resume"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert contents(out) == before
    return said


def changed(path: Path, change: Callable[[Any], Any]) -> None:
    """Another JSON value in the place of the file's."""
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda said: {name: said[name] for name in said if name != "found"}, "found: Field required"),
        (lambda said: {**said, "found": 3}, "found: "),
        (lambda said: {**said, "found": [{**said["found"][0], "hits": "many"}]}, "found.0.hits: "),
        (lambda said: {**said, "found": [{**said["found"][0], "by_prompt": [7]}]}, "found.0.by_prompt.0: "),
        (
            lambda said: {**said, "found": [{**said["found"][0], "probability": NEVER}]},
            "found.0.probability: its ends should be from 0 to 1, not {",
        ),
        (lambda said: {**said, "found": []}, "of other prompts or thresholds"),
        (lambda said: {**said, "found": [{**said["found"][0], "by_prompt": []}]}, "of other prompts or thresholds"),
    ],
)  # fmt: skip
def test_what_a_folder_does_not_say_of_itself(
    change: Callable[[Any], Any], message: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(out / "probability.json", change)
    said = refused(out, capsys)
    assert f"{out / 'probability.json'} is damaged" in said
    assert message in said
    assert "restore it or start over with --overwrite" in said


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{}", "text: Field required"),
        ("[]", "everything: "),
        ('{"threshold"', "is corrupt ("),
        ('{"threshold": 1.0, "prompt": "1", "text": 3, "weight": 1, "log_phi": 0, "log_p": 0, "spans": []}', "text: "),
    ],
)
def test_a_line_that_is_no_event(line: str, message: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = (out / "events.jsonl").read_text().splitlines()
    (out / "events.jsonl").write_text("\n".join([events[0], line, *events[2:]]) + "\n")
    said = refused(out, capsys)
    assert f"{out / 'events.jsonl'} at line 2 is " in said
    assert message in said
    with pytest.raises(RunError, match="at line 2"):
        load(out)


def test_whatever_happens_to_them(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a seed, as `tests.fuzz` does to run folders: no traceback, and what is refused is as it was."""
    for number in range(40):
        out = Path(shutil.copytree(made, tmp_path / str(number)))
        rng = random.Random(f"{number} probability")
        how = damage(rng, out / rng.choice(("probability.json", "events.jsonl")))
        before = contents(out)
        code = main([*SEARCH, "--out", str(out), "--resume"])
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert (code, len(said)) in ((0, 0), (1, 1), (2, 1)), how
        assert code == 0 or contents(out) == before, how


@pytest.mark.parametrize("policy", ["--resume", "--overwrite"])
@pytest.mark.parametrize("others", ["[]", "null", '{"probability": 0.3}', "{"])
def test_a_folder_of_others_with_such_a_file_is_left_alone(
    others: str, policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "probability.json").write_text(others)
    (tmp_path / "thesis.tex").write_text("years of work")
    before = contents(tmp_path)
    assert main([*SEARCH, "--out", str(tmp_path), policy]) == 2
    said = capsys.readouterr().err
    corrupt = "probability.json is corrupt (Expecting property name enclosed in double quotes"
    assert (corrupt if others == "{" else "is not a folder of `twistlm probability`, so it is left alone") in said
    assert contents(tmp_path) == before


def test_a_draft_that_is_damaged_is_begun_again(out: Path) -> None:
    draft = out.with_name(".found.new")
    draft.mkdir()
    (draft / "probability.json").write_text("[]")
    assert main([*SEARCH, "--seed", "1", "--out", str(out), "--overwrite"]) == 0
    assert load(out)[0].num_draws == 64
    assert not draft.exists()


def of_a_function(monkeypatch: pytest.MonkeyPatch, code: str) -> Target:
    """A target whose φ is called `phis:phi`, whatever its code is."""
    file = Path(mkdtemp()) / "phis.py"
    file.write_text(f"def phi(text):\n    return {code}\n")
    spec = importlib.util.spec_from_file_location("phis", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "phis", module)
    return Target(tiny_lm(), Function(module.phi, log=False, batched=False, log_upper_bound=0.0), "5", 3)


@pytest.mark.parametrize("finished", [True, False])
def test_a_function_of_the_same_name_is_not_the_same_question(
    finished: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other function's probability was returned."""
    short, even = "float(len(text) < 12)", "float(len(text) % 2 == 0)"
    out = tmp_path / "found"
    how: dict[str, Any] = {"search": Search(num_draws=64, num_samples=64, max_rounds=1)}
    found = probability(of_a_function(monkeypatch, short), [0.5], out=out, **how)
    if not finished:
        changed(out / "probability.json", lambda said: {**said, "found": None})
    before = contents(out)
    with pytest.raises(RunError, match="of a model or potential of other content, though by the same names; resume"):
        probability(of_a_function(monkeypatch, even), [0.5], out=out, exists="resume", **how)
    with pytest.raises(RunError, match="found was asked with another target; resume"):
        probability(of_a_function(monkeypatch, short).changed(num_tokens=2), [0.5], out=out, exists="resume", **how)
    assert contents(out) == before
    assert probability(of_a_function(monkeypatch, short), [0.5], out=out, exists="resume", **how) == found
    # Older versions did not say what it was of.
    changed(out / "probability.json", lambda said: {name: said[name] for name in said if name != "fingerprint"})
    assert probability(of_a_function(monkeypatch, short), [0.5], out=out, exists="resume", **how) == found


def test_what_cannot_be_identified_is_known_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "found"
    of_a_function(monkeypatch, "0.0")
    # One of `exec` has no source.
    exec("def phi(text):\n    return float(len(text) < 12)", sys.modules["phis"].__dict__)
    unknown = Function(sys.modules["phis"].phi, log=False, batched=False, log_upper_bound=0.0)
    target = Target(tiny_lm(), unknown, "5", 3)
    how: dict[str, Any] = {"search": Search(num_draws=64, num_samples=64, max_rounds=1)}
    found = probability(target, [0.5], out=out, **how)
    assert "fingerprint" not in json.loads((out / "probability.json").read_text())
    assert probability(target, [0.5], out=out, exists="resume", **how) == found


def test_what_is_not_of_a_search_is_not_deleted_with_it(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out / "notes.md").write_text("mine")
    before = contents(out)
    assert main([*SEARCH, "--seed", "1", "--out", str(out), "--overwrite"]) == 2
    assert "holds notes.md, which is not of a folder of `twistlm probability` and would" in capsys.readouterr().err
    assert contents(out) == before
    (out / "notes.md").unlink()
    (out / ".DS_Store").touch()
    assert main([*SEARCH, "--seed", "1", "--out", str(out), "--overwrite"]) == 0
