"""Targets from the command line: parts of an experiment's own replaced, or all of it given, files of prompts too."""

import json
from pathlib import Path
from typing import Any

import pytest

from twistlm import Prompts, Run
from twistlm.cli import main
from twistlm.cli.options import OfTarget
from twistlm.core.errors import ConfigError, RunError
from twistlm.potentials import Classifier, Jigsaw, Regex, Threshold
from twistlm.potentials.base import power_of
from twistlm.runs.aim import Aim, aimed

BUNDLED = Path(__file__).parents[2] / "src" / "twistlm" / "models" / "bundled"
STORIES, TOXICITY, STARS = (str(BUNDLED / name) for name in ("stories", "toxicity", "stars"))
OWN = ("--model", STORIES, "--potential", "regex:pattern=e,eps=0.1", "--num-tokens", "2")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files of prompts, in which commands are run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TWISTLM_PROGRESS", "0")
    (tmp_path / "three.txt").write_text("Once upon a time\nThere was a dog\nOne day, a girl\n")
    (tmp_path / "two.csv").write_text("question,name\nOnce upon,a\nThe dog,b\n")
    return tmp_path


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command is refused with; nothing is left behind."""
    before = sorted(Path().rglob("*"))
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before
    return printed.err


def target_in(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())["target"]


# --- What takes the place of what ------------------------------------------------------------------------------


def test_the_papers_experiment_on_local_folders_keeps_all_else_of_its_potential() -> None:
    """Of the published settings nothing but the names of the models changes: not even what a logit means."""
    published = aimed("toxicity-threshold", "paper", "demo", {}, Aim()).target()
    local = aimed("toxicity-threshold", "paper", "demo", {}, Aim(model=STORIES, classifier=TOXICITY)).target()
    assert local.model_name == STORIES
    assert isinstance(published.potential, Threshold)
    assert isinstance(local.potential, Threshold)
    assert (local.potential.eta, local.potential.on, local.potential.direction) == (-5.0, "logit", "<=")
    assert local.potential.scorer == Classifier(TOXICITY, "toxic", logit_means="not label")
    assert (local.num_tokens, local.prompts, local.eos) == (published.num_tokens, published.prompts, "ignore")


def test_another_classifier_comes_with_its_label_and_keeps_the_power() -> None:
    options = {"beta": 3.0, "label": "5 stars", "num_tokens": 7}
    aim = Aim(classifier=STARS, label="5 stars", num_tokens=7)
    target = aimed("toxicity", "paper", "demo", options, aim).target()
    assert target.potential == Classifier(STARS, "5 stars", beta=3.0)
    assert target.num_tokens == 7


def test_an_experiment_without_the_option_takes_the_length_all_the_same() -> None:
    target = aimed("toxicity-smollm2", "smoke", "demo", {"num_tokens": 3}, Aim(num_tokens=3)).target()
    assert target.num_tokens == 3
    assert isinstance(target.potential, Jigsaw)
    assert power_of(target.potential) == 5.0


def test_a_power_or_a_product_keeps_its_other_parts() -> None:
    own = aimed("toxicity", "smoke", "demo", {}, Aim()).target()
    product = own.changed(potential=(Classifier("toxicity", "toxic") ** 2.0) * Regex("a"))
    changed = Aim(classifier=STARS, label="1 star").of(product).potential
    assert changed == (Classifier(STARS, "1 star") ** 2.0) * Regex("a")
    twice = own.changed(potential=Classifier("toxicity", "toxic") * Classifier("stars", "1 star"))
    with pytest.raises(ConfigError, match="has 2 classifiers"):
        Aim(classifier=STARS, label="1 star").of(twice)


def test_prompts_are_read_as_the_options_say(here: Path) -> None:
    chats = OfTarget(prompts=Path("two.csv"), column="question", chat=True, system="Be kind.").aim().prompts
    assert chats == Prompts.read("two.csv", "question", as_chat=True, system="Be kind.")
    assert chats.are_chats
    assert chats.names == ("a", "b")
    one = OfTarget(prompt="Hello", chat=True).aim().prompts
    assert one is not None
    assert one.are_chats


# --- The commands themselves -----------------------------------------------------------------------------------


def test_train_sample_and_certify_on_folders_and_a_file_of_prompts(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--preset", "smoke", "--num-updates", "1", "--num-particles", "6", "--num-draws", "96"]
    given = ["--model", STORIES, "--classifier", TOXICITY, "--label", "toxic", "--num-tokens", "3"]
    assert main(["train", "toxicity", *small, *given, "--prompts", "three.txt", "--out", "run"]) == 0
    described = target_in(here / "run")
    assert described["model"] == STORIES
    assert described["potential"]["model"] == TOXICITY
    assert [each["content"] for each in described["prompts"]] == Path("three.txt").read_text().splitlines()
    assert "prompt is missing: this target has 3 of them" in refused(["sample", "run"], capsys)
    for prompt, texts in (("2", "after '2'"), ("The sun", "after 'The sun'")):
        assert main(["sample", "run", "--num-samples", "2", "--prompt", prompt]) == 0
        assert texts in " ".join(capsys.readouterr().out.split())
    known = Run.load("run").sample(2, prompt="2").texts
    assert known == Run.load("run").sample(2, prompt="There was a dog").texts
    line = refused(["certify", "run", "--model", STORIES, "--chat"], capsys)
    assert "model, chat: run is a run, whose target stays what it is" in line


def test_a_target_of_ones_own_needs_no_experiment(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [*OWN, "--prompt", "Once upon"]
    updates = ["--num-updates", "1", "--num-particles", "8"]
    assert main(["collect", *asked, "--num-draws", "64", "--out", "d.safetensors"]) == 0
    assert main(["train", *asked, *updates, "--draws", "d.safetensors", "--out", "run"]) == 0
    spending = ["--num-draws", "64", "--num-particles", "2", "--num-samples", "8", "--budget", "8"]
    assert main(["certify", *asked, "--proposal", "run", *spending]) == 0
    assert "KL(q‖σ)" in capsys.readouterr().out
    assert target_in(here / "run")["potential"]["pattern"] == "e"


def test_training_says_what_it_chooses_where_nobody_else_has(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*given: Any, **settings: Any) -> None:
        raise RunError("not now")

    monkeypatch.setattr("twistlm.runs.train.train", never)
    ends, own = ["infilling", "--preset", "smoke"], [*OWN, "--prompt", "a"]
    for asked, line in (
        ([*ends, "--method", "auto"], "dpg, source draws, since each collected draw is exact"),
        (own, "dpg, source proposal, since drawing is quick"),
        (ends, ""),
        ([*own, "--method", "ctl"], ""),
    ):
        assert main(["train", *asked, "--out", "run"]) == 2
        out = capsys.readouterr().out
        assert out.startswith(f"method auto: {line}") if line else not out


def test_infilling_of_ones_own_needs_texts_that_do_not_end(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--model", STORIES, "--potential", "infilling:num_condition=1", "--num-tokens", "2", "--prompt", "Once upon"]
    small = ["--num-updates", "1", "--num-particles", "8", "--num-draws", "64"]
    for remedy, asked in (
        ("(--eos ignore)", []),
        ("(--source base, --source proposal)", ["--eos", "ignore", "--method", "sixo", "--source", "draws"]),
    ):
        assert remedy in refused(["train", *own, *small, *asked, "--out", "run"], capsys)
    remedies = ["--eos", "ignore", "--method", "sixo", "--source", "base"]
    assert main(["train", *own, *small, *remedies, "--out", "run"]) == 0
    assert target_in(here / "run")["eos"] == "ignore"
    assert aimed("toxicity", "smoke", "demo", {}, Aim(eos="absorb")).target().eos == "absorb"
    assert Aim(eos="absorb").described == {"eos": "absorb"}


def test_a_sweep_on_another_target_goes_on_and_mixes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", *OWN, "--methods", "ctl", "--seeds", "1", "--num-updates", "1", "--num-draws", "64"]
    assert main([*command, "--prompts", "three.txt", "--out", "sweep"]) == 0
    asked = json.loads(Path("sweep/sweep.json").read_text())
    assert asked["experiment"] == "own target"
    assert asked["options"]["potential"] == "regex:pattern=e,eps=0.1"
    assert asked["options"]["prompts"].startswith("3 prompts (")
    assert asked["settings"]["ctl"]["num_draws"] == 64
    capsys.readouterr()
    assert main([*command, "--prompts", "three.txt", "--out", "sweep"]) == 0
    assert "all 1 runs are done" in capsys.readouterr().out
    Path("three.txt").write_text("Once upon a time\nThere was a dog\nOne day, a boy\n")
    assert "asked otherwise: options" in refused([*command, "--prompts", "three.txt", "--out", "sweep"], capsys)
    assert "asked otherwise" in refused([*command, "--prompt", "Once upon a time", "--out", "sweep"], capsys)
    assert main(["report", "sweep"]) == 0
    assert "own target, preset default" in " ".join(capsys.readouterr().out.split())


# --- What is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "needs model, potential (or classifier and label), prompt or prompts, num_tokens"),
        (["--model", "stories", "--classifier", "toxicity"], "needs potential (or classifier and label), prompt or"),
        ([*OWN, "--prompt", "a", "--preset", "smoke"], "preset: options of an experiment; name one"),
        ([*OWN, "--prompt", "a", "--beta", "2"], "beta: options of an experiment; name one"),
        ([*OWN, "--prompt", "a", "--label", "toxic"], "label: options of an experiment; name one"),
        (["toxicity", "--prompt", "a", "--prompts", "three.txt"], "--prompt and --prompts exclude each other"),
        (["toxicity", "--column", "question"], "--column is of a file of --prompts"),
        (["toxicity", "--column", "question", "--prompt", "a"], "--column is of a file of --prompts"),
        (["toxicity", "--chat"], "--chat and --system say how --prompt or --prompts are read"),
        (["toxicity", "--prompt", "a", "--system", "b"], "--system is of a chat; give --chat too"),
        (["toxicity", "--label", "rude"], "has no option label; it takes beta, num_tokens"),
        (["toxicity", "--classifier", "toxicity", "--potential", "jigsaw"], "potential and classifier exclude each"),
        (["toxicity", "--potential", "jigsaw", "--beta", "2"], "beta: options of the experiment's φ, which potential"),
        (["toxicity", "--logit-means", "label"], "logit_means is of a new classifier"),
        (["toxicity", "--potential", "jigsw"], "unknown potential 'jigsw'; did you mean 'jigsaw'"),
        (["toxicity", "--potential", "regex"], "potential 'regex' needs pattern"),
        (
            ["infilling", "--classifier", "toxicity", "--preset", "smoke"],
            "has no classifier, and one is to be replaced",
        ),
        (
            ["toxicity", "--method", "ppo", "--source", "draws"],
            "own draws: use source 'proposal' (intermediate_source)",
        ),
        (["infilling", "--potential", "regex:pattern=e", "--preset", "smoke"], "twist 'conditional' reads what each"),
        (["toxicity", "--classifier", "stars", "--label", "rude", "--preset", "smoke"], "unknown label 'rude'"),
        (["toxicity", "--model", "no/such", "--preset", "smoke"], "cannot load model 'no/such'"),
        (["toxicity", "--prompt", "Hi", "--chat"], "model 'stories' has no chat template: give a plain prompt"),
    ],
)
def test_what_makes_no_target(
    given: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert message in refused(["train", *given, "--out", "run"], capsys)


@pytest.mark.parametrize(
    ("content", "given", "message"),
    [
        (b"a\n\nb\n", ["p.txt"], "p.txt, line 2: a blank line is no prompt"),
        (b"a\na\n", ["p.txt"], "is there twice (p.txt, line 1 and p.txt, line 2)"),
        (b"", ["p.txt"], "p.txt is empty"),
        (b"caf\xe9\n", ["p.txt"], "p.txt, line 1: not UTF-8"),
        (b"prompt\na\n", ["p.csv", "--column", "question"], "p.csv, line 2: there is no column 'question'; it has"),
        (b'"a"\n[{"role": "user", "content": "b"}]\n', ["p.jsonl"], "p.jsonl, line 2: a chat, and p.jsonl, line 1"),
        (b"a\n", ["p.md"], "prompts are read from .txt, .jsonl, .csv"),
        (b"a\n", ["."], "prompts are read from .txt, .jsonl, .csv"),
        (b"a\n", ["none.txt"], "'none.txt' cannot be read (No such file or directory)"),
        (b"a\n" + b"long " * 600 + b"\n", ["p.txt"], "prompt '2': "),
        (b"prompt,name\na,n\n" + b"long " * 600 + b",epic\n", ["p.csv"], "prompt 'epic': "),
        (b"a\nb\n", ["p.txt", "--chat"], "has no chat template"),
        (b"a\n", ["p.txt", "--system", "Be kind."], "p.txt, line 1: a text, and the system's message is for chats"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["train", "collect", "certify", "sweep"])
def test_what_is_wrong_with_a_file_of_prompts(
    command: str, content: bytes, given: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "." in given[0][1:]:
        Path("p" + Path(given[0]).suffix).write_bytes(content)
    out = [] if command == "certify" else ["--out", "out"]
    assert message in refused([command, *OWN, *out, "--prompts", *given], capsys)


def test_a_scorer_of_pairs_wants_prompts_with_words(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = ["--potential", f"classifier:model={TOXICITY},label=toxic,of=chat", "--model", STORIES]
    own = [*pairs, "--num-tokens", "2", "--prompt", "Hello"]
    assert "no chat template and puts nothing between two texts" in refused(["train", *own, "--out", "run"], capsys)
    blank = refused(["train", *pairs, "--num-tokens", "2", "--out", "run"], capsys)
    assert "the target needs prompt or prompts" in blank
