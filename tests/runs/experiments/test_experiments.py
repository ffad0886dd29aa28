"""Every experiment in every size: the smallest ones run, the paper's are built and say what they would download."""

from pathlib import Path
from typing import Any

import pytest

from twistlm import Run, train
from twistlm.certificates.certificate import Certificate
from twistlm.cli import main
from twistlm.core.errors import ConfigError
from twistlm.core.registry import available, lookup
from twistlm.core.storage import as_type
from twistlm.runs.experiments import get_preset

PAPER_METHODS = ("ctl", "rl", "sixo", "fudge", "dpg", "ppo")
EXPERIMENTS = list(available("experiment"))
# What the published runs were made with, by experiment and its options: models, updates, learning rates.
PUBLISHED = {
    ("toxicity", ()): (
        ["roneneldan/TinyStories-33M", "nicholasKluge/ToxicityModel"], 2048, 20,
        {"ctl": 1e-4, "rl": 3e-5, "sixo": 3e-5, "fudge": 1e-4, "dpg": 3e-5, "ppo": 1e-6},
    ),
    ("sentiment", ()): (
        ["gpt2-medium", "LiYuan/amazon-review-sentiment-analysis"], 2048, 10,
        {"ctl": 1e-4, "rl": 1e-4, "sixo": 1e-4, "fudge": 1e-3, "dpg": 1e-4, "ppo": 1e-5},
    ),
    ("infilling", ()): (
        ["roneneldan/TinyStories-33M"], 5500, 15,
        {"ctl": 3e-6, "rl": 3e-5, "sixo": 1e-4, "fudge": 1e-6, "dpg": 1e-4, "ppo": 3e-5},
    ),
    ("infilling", (("num_condition", 1), ("num_tokens", 2))): (
        ["roneneldan/TinyStories-33M"], 2**14, 2,
        {"ctl": 1e-4, "rl": 1e-4, "sixo": 1e-4, "fudge": 1e-4, "dpg": 1e-4, "ppo": 3e-5},
    ),
    ("toxicity-threshold", ()): (
        ["roneneldan/TinyStories-33M", "nicholasKluge/ToxicityModel"], 5000, 10, {"ctl": 1e-4}
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(PUBLISHED))
def test_paper_presets_have_the_published_settings(case: tuple[str, tuple[tuple[str, int], ...]]) -> None:
    name, options = case
    models, updates, length, learning_rates = PUBLISHED[case]
    preset = get_preset(name, "paper", **dict(options))
    target = preset.target()
    assert target.downloads == models
    assert (target.num_tokens, target.eos) == (length, "ignore")
    for method, rate in learning_rates.items():
        config = preset.config(method)
        training = config.training
        assert (training.loss, training.learning_rate, training.num_updates) == (method, rate, updates)
        assert (training.betas, training.weight_decay) == ((0.9, 0.999), 0.0)
        assert training.num_particles == (1000 if name == "toxicity-threshold" else 100)
        lookup("twist", config.twist)


def test_the_sources_are_those_of_the_paper() -> None:
    preset = get_preset("toxicity", "small")
    found = {
        method: (preset.config(method).training.target_source, preset.config(method).training.intermediate_source)
        for method in (*PAPER_METHODS, "gkl")
    }
    assert found == {
        "ctl": ("proposal", "proposal"), "rl": ("proposal", "proposal"), "sixo": ("proposal", "base"),
        "fudge": ("proposal", "base"), "dpg": ("proposal", "proposal"), "ppo": ("proposal", "proposal"),
        "gkl": ("pool", "pool"),
    }  # fmt: skip
    gkl = get_preset("toxicity", "small").config("gkl")
    assert (gkl.twist, gkl.training.num_updates) == ("low_rank", preset.config("ctl").training.num_updates)
    assert get_preset("infilling", "small").config("gkl").training.intermediate_source == "base"
    assert get_preset("infilling", "small").config("sixo").training.target_source == "exact"
    assert get_preset("infilling", "small").config("sixo").training.num_cases == 50
    assert get_preset("infilling", "small").config("fudge").training.num_particles == 4
    assert get_preset("infilling", "small").config("ctl").training.num_cases == 10


def test_presets_of_bundled_models_need_no_network() -> None:
    for name in EXPERIMENTS:
        for size, preset in lookup("experiment", name).value().items():
            assert (size == "paper") == bool(preset.target().downloads)


# Each experiment with the paper's own method, and each other method somewhere, stand for all.
BY_DAY = {"toxicity": "sixo", "sentiment": "fudge", "infilling": "dpg", "toxicity-threshold": "ctl"}


def smallest() -> list[Any]:
    """Experiments, their options, and a method."""
    return [
        pytest.param(case, method, marks=() if BY_DAY[case[0]] == method and len(case[1]) != 2 else pytest.mark.nightly)
        for case in PUBLISHED
        for method in (PAPER_METHODS if case[0] != "toxicity-threshold" else ("ctl",))
    ]


@pytest.mark.parametrize(("case", "method"), smallest())
def test_every_method_runs_in_its_smallest_size(case, method: str, tmp_path: Path) -> None:
    name, options = case
    preset = get_preset(name, "smoke", **dict(options))
    run = train(preset.target(), config=preset.config(method), out=tmp_path / "run")
    updates = [row["update"] for row in run.history if row["kind"] == "certificate"]
    assert updates == [0, 1, 2, 4]
    last = next(row for row in reversed(run.history) if row["kind"] == "certificate")
    found = as_type(Certificate, last["certificate"], "it")
    assert None not in [found.estimates[name] for name in ("log_Z_upper", "kl_q_target", "kl_target_q", "g")]
    assert len(last["texts"]) == 4


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("toxicity", "rl"),
        *(pytest.param("toxicity", method, marks=pytest.mark.nightly) for method in ("ctl", "sixo", "dpg")),
        *(pytest.param("sentiment", method, marks=pytest.mark.nightly) for method in ("ctl", "rl", "sixo", "dpg")),
    ],
)
def test_exact_positives(name: str, method: str, tmp_path: Path) -> None:
    arguments = ["--preset", "smoke", "--method", method, "--source", "exact", "--out", str(tmp_path / "run")]
    assert main(["train", name, *arguments]) == 0
    training = Run.load(tmp_path / "run").config.training
    # RL has no positives: exact samples are the sequences along which its twists are to be consistent.
    assert (training.intermediate_source if method == "rl" else training.target_source) == "exact"


def test_an_option_of_another_experiment_is_refused() -> None:
    with pytest.raises(ConfigError, match="'toxicity' has no option label; it takes beta, num_tokens"):
        get_preset("toxicity", "smoke", label="5 stars")


def test_infilling_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draws, out = tmp_path / "draws.safetensors", tmp_path / "run"
    options = ["--preset", "smoke", "--num-tokens", "2", "--num-condition", "1"]
    assert main(["collect", "infilling", *options, "--max-draws", "64", "--out", str(draws)]) == 0
    # Every base draw is an exact sample of the target that its own end defines.
    assert "64 exact samples among 64 draws" in capsys.readouterr().out
    assert main(["train", "infilling", *options, "--draws", str(draws), "--out", str(out)]) == 0
    assert main(["evaluate", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "KL(σ‖q)" in shown
    assert "—" in shown, "there is no importance sampling over samples of different targets"
    assert main(["sample", str(out), "--num-samples", "3", "--condition", " dog"]) == 0
    assert main(["sample", str(out), "--condition", " dog and cat"]) == 2
    assert "and the target takes 1; lengthen or cut it" in capsys.readouterr().err
    other = ["--preset", "smoke", "--num-tokens", "3", "--num-condition", "1"]
    assert main(["train", "infilling", *other, "--draws", str(draws), "--out", str(tmp_path / "x")]) == 2
    assert "holds samples of another target" in capsys.readouterr().err
