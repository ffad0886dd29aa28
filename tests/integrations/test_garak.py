"""garak itself, in an environment of its own, asking a run of the bundled model over HTTP."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import twistlm
from examples.integrations import garak_intervals
from tests.serving import serving
from twistlm import Run, Target
from twistlm.core.errors import ConfigError, ModelError
from twistlm.integrations.garak import KEY, URL, chat, text
from twistlm.integrations.server.app import application
from twistlm.integrations.server.limits import Limits
from twistlm.potentials import Classifier

ROOT = Path(__file__).parents[2]
GARAK = ROOT / ".venv-garak" / "bin" / "python"
PROMPT = "Once upon a time, there was a"
LIMITS = Limits(num_particles=4, most_samples=8)
# What garak's detector of words in the first person, lmrc.Anthro, looks for.
FIRST_PERSON = re.compile(r"\b(i|me|my|mine)\b", re.IGNORECASE)


def needs_garak(test: Any) -> Any:
    """Every night, with garak's own environment."""
    return pytest.mark.nightly(pytest.mark.skipif(not GARAK.exists(), reason="needs garak: make garak")(test))


@pytest.fixture(scope="module")
def run() -> Run:
    target = Target("stories", Classifier("sentiment", "positive"), PROMPT, num_tokens=12)
    return twistlm.train(target, twist="lexical", num_updates=2, num_draws=64, num_particles=8, seed=0)


@pytest.fixture
def address(run: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A new server each time, so that each answers its first requests alike."""
    with serving(application(run, "happy", limits=LIMITS, api_key="sesame")) as at:
        monkeypatch.setenv(URL, f"{at}/v1/")
        monkeypatch.setenv(KEY, "sesame")
        yield at


def scanned(folder: Path, *options: str, home: str = "home", **environment: str) -> tuple[str, list[dict[str, Any]]]:
    """What garak says, and the entries of its report; its own files go into the folder."""
    places = {f"XDG_{kind}_HOME": str(folder / home / kind) for kind in ("DATA", "CONFIG", "CACHE")}
    asked = subprocess.run(
        [GARAK, "-m", "garak", *options, "--generations", "5", "--report_prefix", str(folder / "scan")],
        capture_output=True, text=True, timeout=600, cwd=folder, env={**os.environ, **places, **environment},
    )  # fmt: skip
    report = folder / "scan.report.jsonl"
    lines = report.read_text(encoding="utf-8").splitlines() if report.exists() else []
    return asked.stdout + asked.stderr, [json.loads(line) for line in lines]


def outputs(report: list[dict[str, Any]], probe: str) -> list[tuple[str, list[str | None]]]:
    """Prompts and what was answered, in the order in which they were asked."""
    complete = [each for each in report if each["entry_type"] == "attempt" and each["status"] == 2]
    return [
        (each["prompt"]["turns"][-1]["content"]["text"], [said and said["text"] for said in each["outputs"]])
        for each in sorted(complete, key=lambda each: int(each["seq"]))
        if each["probe_classname"] == probe
    ]


def evaluated(report: list[dict[str, Any]], probe: str) -> dict[str, Any]:
    (found,) = [each for each in report if each["entry_type"] == "eval" and each["probe"] == probe]
    return found


@needs_garak
def test_garak_scans_a_run(run: Run, address: str, tmp_path: Path) -> None:
    target = ("--target_type", "function.Multiple", "--target_name", "twistlm.integrations.garak#text")
    said, report = scanned(tmp_path, *target, "--spec", "probes.lmrc.Anthropomorphisation")
    assert report, said
    answered = outputs(report, "lmrc.Anthropomorphisation")
    assert len(answered) == 6
    # The same questions to the same server, started anew, have the same answers: all that garak has is the run's.
    with serving(application(run, "happy", limits=LIMITS)) as again, pytest.MonkeyPatch.context() as patch:
        patch.setenv(URL, f"{again}/v1")
        for prompt, texts in answered:
            assert text(prompt, 5) == texts
    texts = [str(each) for _, several in answered for each in several]
    assert len(set(texts)) > 15
    hits = sum(FIRST_PERSON.search(each) is not None for each in texts)
    found = evaluated(report, "lmrc.Anthropomorphisation")
    assert (found["detector"], found["fails"], found["total_evaluated"]) == ("lmrc.Anthro", hits, 30)
    ((_, rate),) = garak_intervals.main(tmp_path / "scan.report.jsonl").items()
    assert rate.value == pytest.approx(hits / 30)
    assert rate.low < rate.value < rate.high or hits in (0, 30)
    assert rate.low < rate.high


@needs_garak
def test_a_prompt_without_samples_is_no_pass(address: str, tmp_path: Path) -> None:
    target = ("--target_type", "function", "--target_name", "twistlm.integrations.garak#text")
    said, report = scanned(tmp_path, *target, "--spec", "probes.test.Blank")
    assert report, said
    assert outputs(report, "test.Blank") == [("", [None] * 5)]
    found = evaluated(report, "test.Blank")
    assert (found["total_evaluated"], found["nones"]) == (0, 5)


@needs_garak
def test_the_generator_of_anything_over_http(address: str, tmp_path: Path) -> None:
    """garak's own `rest`, as the page says."""
    asked = {
        "uri": f"{address}/v1/completions",
        "headers": {"Authorization": "Bearer $KEY", "Content-Type": "application/json"},
        "req_template_json_object": {"model": "happy", "prompt": "$INPUT"},
        "response_json": True,
        "response_json_field": "$.choices[0].text",
        "skip_codes": [400],
    }
    (tmp_path / "rest.json").write_text(json.dumps({"rest": {"RestGenerator": asked}}))
    options = ("--target_type", "rest", "--generator_option_file", str(tmp_path / "rest.json"))
    said, report = scanned(tmp_path, *options, "--spec", "probes.lmrc.Anthropomorphisation", REST_API_KEY="sesame")
    assert report, said
    answered = outputs(report, "lmrc.Anthropomorphisation")
    assert len(answered) == 6
    assert len({each for _, texts in answered for each in texts}) > 15
    assert evaluated(report, "lmrc.Anthropomorphisation")["total_evaluated"] == 30


@needs_garak
def test_garak_says_in_one_line_what_is_wrong(address: str, tmp_path: Path) -> None:
    target = ("--target_type", "function", "--target_name", "twistlm.integrations.garak#text")
    said, report = scanned(tmp_path, *target, "--spec", "probes.lmrc.Anthropomorphisation", **{KEY: "another"})
    assert "the API key is missing, or another one" in said
    assert not [each for each in report if each["entry_type"] == "eval"]


def test_samples_of_the_run(run: Run, address: str) -> None:
    found = text(PROMPT, 3, num_particles=2)
    assert len(set(found)) == 3
    assert all(found)
    # Nothing comes after these, and that is no error of the others.
    assert text("", 3) == text("a " * 3000, 3) == []
    with pytest.raises(ConfigError, match=r"num_particles is at most 1024"):
        text(PROMPT, num_particles=4096)
    with pytest.raises(ConfigError, match=r"at most 8 sequences"):
        text(PROMPT, 9)
    with pytest.raises(ConfigError, match="no chat template"):
        chat(PROMPT)


def test_where_no_server_is(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URL, f"{address}/v2")
    with pytest.raises(ConfigError, match=r"/v2 refuses what it is asked \(404\)"):
        text(PROMPT)
    monkeypatch.setenv(URL, "http://127.0.0.1:9/v1")
    with pytest.raises(ModelError, match=f"start it, or say by {URL} where it is"):
        text(PROMPT)


def test_it_needs_the_standard_library_alone() -> None:
    """As in garak's environment, where torch may be missing and transformers another."""
    check = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r}); import twistlm, twistlm.integrations.garak; "
        "print({name.split('.')[0] for name in sys.modules} - sys.stdlib_module_names - {'__main__'})"
    )
    found = subprocess.run([sys.executable, "-I", "-S", "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "{'twistlm'}"
