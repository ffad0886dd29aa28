"""How runs, targets and samples show themselves: in one line, and in notebooks."""

from pathlib import Path

import pytest
import torch

import twistlm
from twistlm import Run, Target
from twistlm.cli import main
from twistlm.core.errors import ConfigError, RunError
from twistlm.core.folders import writing
from twistlm.potentials import Classifier


@pytest.fixture(scope="module")
def run() -> Run:
    target = Target("stories", Classifier("sentiment", "positive"), "Once upon a time, there was a", 5)
    return twistlm.train(target, twist="lexical", num_updates=2, num_draws=64, num_particles=8, seed=0)


def test_one_line_each(run: Run) -> None:
    drawn, certificate = run.sample(8), run.evaluate(4, num_samples=32, budget=16)
    for shown, said in (
        (run.target, "num_tokens=5"),
        (run, "Run(in memory: dpg"),
        (drawn, "TextSamples(8 texts, log Ẑ = "),
        (certificate, "KL(q‖σ)"),
    ):
        assert said in repr(shown)
        assert "\n" not in repr(shown)
    assert certificate.log_Z == certificate.divergences.log_Z
    assert "KL(q‖σ)" in certificate.summary()
    html = certificate._repr_html_()
    assert html.count("<tr>") == sum(each is not None for each in certificate.estimates.values())
    assert "Once upon a time" in run.target._repr_html_()
    assert "KL(q‖σ)" in run._repr_html_()


def test_tokens_and_ends(run: Run) -> None:
    drawn, eos = run.sample(64, seed=1), run.target.lm.eos_token_id
    assert drawn.tokens.shape == (64, 5)
    assert drawn.finished.equal((drawn.tokens == eos).any(-1))
    assert run.target.lm.decode(list(drawn.tokens)) == drawn.texts


def test_what_a_model_wrote_is_escaped(run: Run) -> None:
    drawn = run.sample(4)
    bad = twistlm.runs.texts.TextSamples(
        ["<script>alert(1)</script>"] * 30, *[getattr(drawn, name) for name in ("tokens", "finished")],
        torch.full((30,), 1 / 30), torch.zeros(30), torch.zeros(30), -1.0, drawn.pieces, drawn.log_psi_moves,
        drawn.log_w_moves, prompt="<b>",
    )  # fmt: skip
    html = bad._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "<b>" not in html
    assert "10 more" in html


def test_sampling_needs_no_draws(tmp_path: Path, run: Run) -> None:
    config = {"twist": "lexical", "num_updates": 1, "num_draws": 64, "num_particles": 8, "seed": 0}
    made = twistlm.train(run.target, out=tmp_path / "run", **config)
    (tmp_path / "run" / "draws.safetensors").write_bytes(b"nothing that anyone could read")
    opened = Run.load(tmp_path / "run", draws=False)
    assert opened.collection is None
    assert opened.sample(4).texts == made.sample(4).texts
    with pytest.raises(RunError):
        Run.load(tmp_path / "run")


def test_a_report_is_that_of_the_command(tmp_path: Path, run: Run) -> None:
    with pytest.raises(ConfigError, match="this run has none: train it with out="):
        run.report()
    config = {"twist": "lexical", "num_updates": 2, "num_draws": 64, "num_particles": 8, "seed": 0}
    made = twistlm.train(run.target, out=tmp_path / "run", **config)
    with pytest.raises(RunError, match="has no certificate"):
        made.report()
    made.evaluate(2, num_samples=16, budget=8)
    page = made.report()
    assert page == tmp_path / "run" / "report.html"
    assert (tmp_path / "run" / "report" / "bounds.png").exists()
    elsewhere = made.report(str(tmp_path / "page.html"))
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "other.html")]) == 0
    assert elsewhere.read_bytes() == (tmp_path / "other.html").read_bytes() == page.read_bytes()
    # Nothing is replaced unless that is asked for, and nobody is written over.
    (tmp_path / "page.html").write_text("mine")
    for out, error, message in (
        (tmp_path / "page.html", RunError, "exists already"),
        (tmp_path / "page", ConfigError, "ends in .html"),
    ):
        with pytest.raises(error, match=message):
            made.report(out)
    assert elsewhere.read_text() == "mine"
    assert made.report(elsewhere, overwrite=True).read_bytes() == page.read_bytes()
    with writing(tmp_path / "run"), pytest.raises(RunError, match="is being written"):
        made.report()


def test_a_damaged_certificate_is_said_and_the_rest_is_shown(tmp_path: Path, run: Run) -> None:
    config = {"twist": "lexical", "num_updates": 1, "num_draws": 64, "num_particles": 8, "seed": 0}
    made = twistlm.train(run.target, out=tmp_path / "run", **config)
    (tmp_path / "run" / "certificate.json").write_text('{"after": {"bounds": 1}}')
    assert "certificate.json" in made._repr_html_()
    assert "dpg, lexical, 0" in made._repr_html_()
    with pytest.raises(RunError, match="is damaged or of another version"):
        _ = made.certificate
