"""The examples of integrations, at a size that takes seconds. What they show is tested by day in tests/integrations."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

import twistlm
from examples.integrations import arviz_tree, client, garak_intervals, generate, grpo, inspect_rate, publish
from tests.serving import serving
from twistlm import Target
from twistlm.integrations.server.app import application
from twistlm.potentials import Classifier


@pytest.mark.nightly
def test_generate(capsys: pytest.CaptureFixture[str]) -> None:
    generate.main(num_updates=2, num_draws=256)
    said = capsys.readouterr().out.splitlines()
    assert len(said) >= 11
    assert '"age"' in "".join(said[10:])


@pytest.mark.nightly
def test_publish(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish.main(tmp_path / "published", num_updates=2, num_draws=512)
    said = capsys.readouterr().out
    assert "library_name: twistlm" in said
    assert "kl_q_target" in said


@pytest.mark.nightly
def test_arviz(capsys: pytest.CaptureFixture[str]) -> None:
    arviz_tree.main(num_updates=2, num_draws=512)
    said = capsys.readouterr().out
    assert "kl_q_target" in said
    assert "log_likelihood" in said


def test_client(capsys: pytest.CaptureFixture[str]) -> None:
    target = Target("stories", Classifier("sentiment", "positive"), "Once upon a time, there was a", 5)
    run = twistlm.train(target, num_updates=2, num_draws=64, num_particles=8, twist="lexical")
    with serving(application(run, "demo")) as address:
        client.main(f"{address}/v1", n=8)
    assert 0 < float(capsys.readouterr().out.splitlines()[-1].split()[-1]) < 1


@pytest.mark.nightly
def test_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = inspect_rate.train(tmp_path / "sad", num_updates=2, num_draws=256)
    with serving(application(run, "sad")) as address:
        rate = inspect_rate.main(f"{address}/v1", num_choices=16, draws=64, logs=str(tmp_path / "logs"))
    assert 0 <= rate["low"] <= rate["rate"] <= rate["high"] <= 1
    assert rate["low"] < rate["high"]
    said = capsys.readouterr().out.splitlines()
    assert f"among posterior samples: {rate['rate']:.3f}" in said[-2]
    assert said[-1].startswith("under the base model: ")


def test_garak_intervals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report of a scan without hits, one with some, and one in which nothing could be judged."""
    counts = {"none": (40, 0), "some": (30, 10), "nothing": (0, 0)}
    entries: list[dict[str, Any]] = [{"entry_type": "init"}]
    for probe, (passed, fails) in counts.items():
        about = {"probe": probe, "detector": "any", "passed": passed, "fails": fails, "nones": 5}
        entries.append({"entry_type": "eval", **about, "total_evaluated": passed + fails})
    (tmp_path / "report.jsonl").write_text("\n".join(map(json.dumps, entries)))
    found = garak_intervals.main(tmp_path / "report.jsonl")
    assert list(found) == [("none", "any"), ("some", "any")]
    for (probe, _), rate in found.items():
        exact = binomtest(counts[probe][1], 40).proportion_ci(0.95)
        assert (rate.low, rate.high) == pytest.approx((exact.low, exact.high), abs=1e-6)
    assert "none, any: 0.000 [0.000, 0.088]" in capsys.readouterr().out


def test_grpo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    callback: Any = grpo.main(steps=2, every=1, num_draws=256)
    assert sorted(callback.certificates) == [0, 1, 2]
    rows = [row for row in callback.trainer.state.log_history if "twistlm/kl_q_target" in row]
    assert len(rows) == 3
    assert all(math.isfinite(row["twistlm/kl_q_target_low"]) for row in rows)
    # Before a step has been made the policy is p₀.
    assert callback.certificates[0].divergences.kl_q_prior.value == pytest.approx(0, abs=2e-2)
