"""What options may be: one line that names the option, its value and its limit, before anything is done."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.cases import make_case
from twistlm import Target, TrainingConfig
from twistlm.certificates.effort import Search
from twistlm.certificates.rare_events import probability
from twistlm.cli import COMMANDS, main
from twistlm.core.errors import ConfigError, ModelError, PromptError
from twistlm.core.rng import Rng
from twistlm.core.sizes import check_sizes
from twistlm.potentials import Classifier, Function, Regex, Threshold
from twistlm.potentials.base import MOST_BETA
from twistlm.runs.experiments import get_preset
from twistlm.sampling.proposals import get_proposal
from twistlm.sampling.sampler import Sampler

PROMPT = "Once upon a time"


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command is refused with."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("error: ")
    assert not printed.out
    return printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # Issue by issue: what was accepted in silence, or ended in a traceback.
        (["certify", "toxicity", "--budget", "-1"], "budget must be at least 1, not -1"),
        (["certify", "toxicity", "--num-draws", "-1"], "num_draws must be at least 0, not -1"),
        (["certify", "toxicity", "--gap", "1", "--max-seconds", "-5"], "max_seconds must be above 0, not -5"),
        (["certify", "toxicity", "--gap", "nan"], "gap must be finite, not nan"),
        (["certify", "toxicity", "--max-sequences", "5"], "--max-sequences 5: limits of what --gap spends; give"),
        (["certify", "x", "--max-sequences", "5", "--max-seconds", "1"], "5, --max-seconds 1: limits of what --gap"),
        (["certify", "toxicity", "--num-particles", "4", "0"], "num_particles must be at least 1, not 0"),
        (["certify", "toxicity", "--num-particles"], "num_particles: give at least 1"),
        (["certify", "toxicity", "--num-tokens", "0"], "num_tokens must be at least 1, not 0"),
        (["sample", "x", "--num-particles", "0"], "num_particles must be at least 1, not 0"),
        (["sample", "x", "--num-samples", "1" + "0" * 30], "num_samples must be at most 9.22"),
        (["sample", "x", "--ess-threshold", "nan"], "ess_threshold must be at most 1, not nan"),
        (["probability", "x", "--regex", "y", "--thresholds", "0.5", "nan"], "thresholds must be finite, not nan"),
        (["probability", "x", "--regex", "y", "--thresholds", "-1"], "error: thresholds must be above 0, not -1.0\n"),
        (["probability", "", "--regex", "y"], "prompt is empty"),
        (["probability", "x", "--regex", "y", "--logit-means", "label"], "--logit-means is of a classifier"),
        (["train", "toxicity", "--out", "x", "--num-tokens", "0"], "num_tokens must be at least 1, not 0"),
        (["train", "toxicity", "--out", "x", "--draws", "f", "--num-draws", "8"], "--num-draws exclude each other"),
        (["train", "toxicity", "--out", "x", "--beta", "nan"], "beta must be finite, not nan"),
        (["train", "toxicity", "--out", "x", "--learning-rate", "inf"], "learning_rate must be finite, not inf"),
        (["train", "toxicity", "--out", "x", "--weight-decay", "-1"], "weight_decay must be at least 0, not -1.0"),
        (
            ["train", "toxicity", "--out", "x", "--weight-decay", "1e300"],
            "weight_decay = 1e+300 times learning_rate = 0.0",
        ),
        (["train", "toxicity", "--out", "x", "--method", "*ctl"], "the weight '' is not a positive number"),
        (["train", "toxicity", "--out", "x", "--twist", "None"], "unknown twist 'None'"),
        (["train", "toxicity", "--out", "x", "--beta", "1e300"], "beta must be at most 1e+06"),
        (["train", "toxicity", "--out", "a\udcffb"], "out is no path"),
        (["train", "toxicity", "--out", "a\0b"], "out is no path"),
        (["train", "toxicity", "--out", "x", "--nope", "3"], "Unrecognized options: --nope, 3"),
        (["train", "toxicity", "--out", "x", "--num-updates", "many"], "Error parsing --num-updates"),
        (["train", "toxicity"], "Missing from twistlm train: --out PATH"),
        (["trian"], "Unrecognized options: trian"),
        ([], "Expected one of {demo, list"),
        (["collect", "toxicity", "--out", "."], "out must name a file, not '.'"),
        (["collect", "toxicity", "--out", ""], "out must name a file, not '.'"),
        (["sweep", "toxicity", "--out", "x", "--jobs", "-1"], "jobs must be at least 1, not -1"),
    ],
)
def test_what_an_option_may_not_be(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert message in refused(arguments, capsys)
    assert not list(tmp_path.iterdir()), "a refused command left something behind"


def test_every_option_says_what_it_may_be() -> None:
    """No command takes a bare number, path or text, which anything would pass."""
    import inspect
    from typing import Annotated, get_args, get_origin

    def bare(annotation: object) -> bool:
        if get_origin(annotation) is Annotated:
            inner, *more = get_args(annotation)
            checks = [
                each for each in more if type(each).__module__.partition(".")[0] in ("annotated_types", "pydantic")
            ]
            return not checks and bare(inner)
        return annotation in (int, float, str, Path) or any(map(bare, get_args(annotation)))

    def options(command: Callable[..., None]) -> Iterator[tuple[str, object]]:
        for parameter in inspect.signature(command).parameters.values():
            group = get_args(parameter.annotation)[0] if get_origin(parameter.annotation) is Annotated else None
            if dataclasses.is_dataclass(group):
                yield from ((each.name, each.type) for each in dataclasses.fields(group))
            else:
                yield parameter.name, parameter.annotation

    for name, command in COMMANDS.items():
        for option, annotation in options(command):
            assert not bare(annotation), f"{name} {option}"


def test_a_file_in_the_way_of_results_is_found_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "dangling").symlink_to("nowhere")
    for out in ("file/c.json", "dangling", "x" * 300, "/proc/nowhere/c.json"):
        assert main(["certify", "toxicity", "--preset", "smoke", "--out", out]) == 1, out
        line = capsys.readouterr().err
        assert line.startswith("error: ")
        assert line.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file"]


# --- The library, for those who do without the command line ---------------------------------------------------


@pytest.mark.parametrize("count", [10**12, 10**30, 10**4000], ids=["10^12", "10^30", "10^4000"])
def test_what_no_memory_holds_is_refused(count: int) -> None:
    with pytest.raises(ConfigError, match=r"num_draws = .* GiB at the very least, and this machine has .* GiB"):
        check_sizes(24, num_draws=count)
    with pytest.raises(ConfigError, match="num_updates"):
        TrainingConfig(num_updates=count)
    with pytest.raises(ConfigError, match="num_samples"):
        Search(num_samples=count)
    case = make_case()
    with pytest.raises(ConfigError, match="num_particles"):
        Sampler(case.twisted, case.potential, 3).smc(Rng(0), [case.at], count)
    target = Target("stories", Regex("a"), PROMPT, 2)
    with pytest.raises(ConfigError, match="max_draws"):
        target.collect(Rng(0), num_samples=None, max_draws=count)


@pytest.mark.parametrize("count", [0, -1, 1.5, True, None])
def test_what_is_no_number_of_things(count: object) -> None:
    with pytest.raises(ConfigError, match=r"num_draws must be"):
        check_sizes(1, num_draws=count)  # type: ignore[arg-type]


def test_a_power_beyond_the_rounding_of_scores_is_refused() -> None:
    Classifier("toxicity", "toxic", beta=MOST_BETA)
    for beta in (2 * MOST_BETA, 1e300, math.nan, 0.0):
        with pytest.raises(ConfigError, match="beta must be"):
            Classifier("toxicity", "toxic", beta=beta)


def test_a_prompt_of_broken_characters_is_refused() -> None:
    with pytest.raises(PromptError, match=r"'a\\udcff' is not text"):
        Target("stories", Regex("a"), "a\udcff", 2)
    with pytest.raises(ConfigError, match=r"num_tokens must be a whole number, not 2\.5"):
        Target("stories", Regex("a"), "a", 2.5)  # type: ignore[arg-type]


def test_a_proposal_without_a_parameter_takes_none() -> None:
    for name in ("base:2", "base:", "twist_induced:0.5"):
        with pytest.raises(ConfigError, match="takes no parameter"):
            get_proposal(name)


def test_zero_tokens_are_not_the_default() -> None:
    for preset in ("smoke", "demo", "paper"):
        with pytest.raises(ConfigError, match="num_tokens must be at least 1, not 0"):
            get_preset("toxicity", preset, num_tokens=0).target()
    with pytest.raises(ConfigError, match="num_tokens must be at least 1, not 0"):
        get_preset("infilling", "smoke", num_tokens=0)


def test_a_twist_that_is_not_a_number_is_an_error() -> None:
    target = Target("stories", Regex("a"), PROMPT, 2)
    twist = target.build_twist(Rng(0), "low_rank", {})
    for parameter in twist.module.parameters():
        torch.nn.init.constant_(parameter, math.nan)
    with pytest.raises(ModelError, match=r"weights are not numbers \(NaN\)"):
        Sampler(target.twisted(twist), target.bound_potential, 2).smc(Rng(0), target.cases, 2)


# --- Labels, thresholds and functions -------------------------------------------------------------------------


def test_a_label_that_is_not_there_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    event = ["probability", PROMPT, "--classifier", "toxicity", "--label", "insult"]
    assert "unknown label 'insult'; the model's labels are 0 'toxic'" in refused(event, capsys)
    # It used to report toxicity as insult.
    assert "unknown label 'insult'" in refused([*event, "--logit-means", "label"], capsys)
    out = tmp_path / "run"
    wrong = ["train", "sentiment", "--preset", "smoke", "--label", "6 stars", "--out", str(out)]
    assert "1 '2 stars'" in refused(wrong, capsys)
    assert not out.exists(), "the corrected command would be refused"


def test_a_threshold_that_nothing_reaches_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    event = ["probability", PROMPT, "--classifier", "toxicity", "--label", "toxic", "--thresholds", "0.5", "2"]
    assert "threshold = 2 is never reached: φ is at most 1" in refused(event, capsys)
    with pytest.raises(ConfigError, match="threshold = 2 is never reached"):
        probability(Target("stories", Regex("a"), PROMPT, 2), [2.0])
    with pytest.raises(ConfigError, match="eta = 2 is never reached"):
        Threshold(Regex("a"), 2.0)
    Threshold(Regex("a"), 1.0)
    Threshold(Function(len), 2.0)


def half(texts: list[str]) -> list[float]:
    return [0.5 for _ in texts]


def score(function: Function, *texts: str) -> None:
    function.log_phi_texts(list(texts))


def test_a_function_that_seems_to_return_phi_is_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    many = [f"text {k}" for k in range(40)]
    target = Target("stories", half, PROMPT, 2)
    suspect = target.potential
    assert isinstance(suspect, Function)
    for function in (suspect, suspect.bind(target.lm)):
        score(function, *many)
    assert caplog.text.count("values of half are between 0 and 1") == 1
    caplog.clear()
    score(Function(half, log=False), *many)
    score(Function(lambda texts: [-0.5 for _ in texts]), *many)
    score(Function(lambda texts: [0.5 if text == "text 3" else -2.0 for text in texts]), *many)
    score(Function(half), *many[:3])
    assert not caplog.text


def test_functions_of_the_command_line_return_log_phi(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """exp(−3) is the score of every text: a threshold below it is always reached, one above it never."""
    (tmp_path / "my_scores.py").write_text("def always(texts):\n    return [-3.0 for _ in texts]\n")
    monkeypatch.syspath_prepend(tmp_path)
    command = ["probability", PROMPT, "--function", "my_scores:always", "--num-tokens", "2", "--num-draws", "64"]
    assert main([*command, "--num-samples", "64", "--max-rounds", "1", "--thresholds", "0.04"]) == 0
    assert "1.00e+00" in capsys.readouterr().out
    assert main([*command, "--num-samples", "64", "--max-rounds", "1", "--thresholds", "0.06"]) == 0
    assert "never seen" in capsys.readouterr().out
