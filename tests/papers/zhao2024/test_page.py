"""The page of results: what is measured goes between its marks, and nothing else is touched."""

from dataclasses import replace
from pathlib import Path

import pytest

from papers.zhao2024.page import BEGIN, END, PUBLISHED, curves, section, write
from tests.architectures import tiny_lm
from twistlm.core.errors import ConfigError
from twistlm.potentials import Function
from twistlm.runs.config import EvaluationConfig, RunConfig
from twistlm.runs.experiments import Preset
from twistlm.runs.sweeps.pooled import read
from twistlm.runs.sweeps.sweep import Request, sweep
from twistlm.sampling.target import Target
from twistlm.training.config import TrainingConfig

PAGE = Path(__file__).parents[3] / "docs" / "results.md"


def small_numbers(texts: list[str]) -> list[float]:
    return [-sum(int(word) for word in text.split()[1:]) / 150 for text in texts]


def preset(*_: object, **__: object) -> Preset:
    training = TrainingConfig(num_particles=16, num_updates=2, evaluate_every=2, patience=None, shrinkages=())
    run = RunConfig(training=training, num_draws=2048, num_siblings=0, evaluation=EvaluationConfig((2, 4), 32, 16))
    return Preset(
        "", lambda: Target(tiny_lm(), Function(small_numbers, log_upper_bound=0.0), "5", 3, eos="ignore"), run
    )


def test_tables_go_between_the_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twistlm.runs.aim.get_preset", preset)
    sweep(Request("toxicity", "tiny", methods=("ctl", "dpg"), num_seeds=2, learning_rate=0.25), tmp_path / "s")
    page = tmp_path / "results.md"
    page.write_text(
        f"before\n{BEGIN}\nstale\n<!-- section: sentiment -->\n\nruns elsewhere\n\n"
        f"<!-- section: toxicity -->\n\nstale\n{END}\nafter\n"
    )
    run = {
        "method": "ctl", "exact": {"kl_q_target": 0.5, "kl_target_q": 0.25, "log_Z": -2.0},
        "estimate": {
            "kl_q_target": {"value": 0.75, "low": 0.6, "high": 0.9, "n": 9},
            "kl_target_q": {"value": 0.3, "low": 0.2, "high": 0.4, "n": 9},
            "log_Z": {"value": -2.1, "low": -2.2, "high": -1.9, "n": 9},
        },
    }  # fmt: skip
    order = ["toxicity", "sentiment", "A table"]
    for _ in range(2):
        write({"toxicity": read(tmp_path / "s")}, page, {"A table": {"runs": [run, run]}}, order)
    text = page.read_text()
    found = [text.index(part) for part in ("| dpg |", "runs elsewhere", "### A table")]
    assert found == sorted(found)
    assert text.count("<!-- section: ") == 3
    assert "### A table" in text
    assert "Exact log Z = -2.0000; 2 of 2 of the certificates'" in text
    assert "| ctl | 0.500 | 0.750 | 0.250 | 0.300 | 2 of 4 |" in text
    assert text.startswith(f"before\n{BEGIN}")
    assert text.endswith(f"{END}\nafter\n")
    assert "stale" not in text
    row = next(line for line in text.splitlines() if line.startswith("| dpg |"))
    assert "| 1.09 / 1.12 |" in row
    assert "| 0.25 |" in row
    assert "published ctl, dpg" in text
    page.write_text("no marks")
    with pytest.raises(ConfigError, match="has lost the lines"):
        write({}, page, {})
    assert page.read_text() == "no marks"


def test_divergences_by_sequences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def certified(*_: object, **__: object) -> Preset:
        plain = preset()
        return replace(plain, run=replace(plain.run, evaluation=replace(plain.run.evaluation, during_training=True)))

    monkeypatch.setattr("twistlm.runs.aim.get_preset", certified)
    sweep(Request("toxicity", "tiny", methods=("ctl",), num_seeds=1, learning_rate=0.25), tmp_path / "s")
    pooled = read(tmp_path / "s")
    # Updates of 16 sequences: two of them were made.
    monkeypatch.setattr("papers.zhao2024.page.SEQUENCES", (16, 32, 64))
    assert "by sequences drawn" not in section("toxicity", pooled)
    monkeypatch.setattr("papers.zhao2024.page.SEQUENCES", (16, 24, 32))
    text = section("toxicity", pooled)
    assert "| method | 16 | 24 | 32 |" in text
    both = curves(pooled)["ctl"].values()
    first, last = (" / ".join(f"{kl[at][1]:.2f}" for kl in both) for at in (1, 2))
    # No certificate was made after one update and a half.
    assert f"| ctl | {first} | — | {last} |" in text


def test_the_page_has_its_marks_and_the_paper_its_methods() -> None:
    text = PAGE.read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    assert all(len(methods) in (4, 6) for methods in PUBLISHED.values())
