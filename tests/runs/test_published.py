"""Runs as repositories: written, described by a card, moved, and opened again by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

import twistlm
from tests.fuzz.harness import contents
from twistlm import Run, Target
from twistlm.core.errors import ConfigError, ExactSamplesError, ModelError, RunError
from twistlm.core.storage import load_typed
from twistlm.models import bundled
from twistlm.potentials import Classifier, Function
from twistlm.runs.folder import Evaluation

PROMPT = "Once upon a time, there was a"
STORIES = bundled.folder("stories")
SMALL: dict[str, Any] = {"twist": "lexical", "num_updates": 2, "num_draws": 64, "num_particles": 8, "seed": 0}


@pytest.fixture(scope="module")
def run() -> Run:
    made = twistlm.train(Target("stories", Classifier("sentiment", "positive"), PROMPT, 5), **SMALL)
    made.evaluate(4, num_samples=64, budget=32)
    return made


def test_it_says_what_its_training_has_seen(run: Run, tmp_path: Path) -> None:
    again = Run.from_pretrained(run.save_pretrained(tmp_path / "run")).save_pretrained(tmp_path / "again")
    with pytest.raises(ExactSamplesError, match=r"draws holds draws that the proposal's training has seen \(stream 0/"):
        twistlm.certify(run.target, again, draws=run.collection, num_particles=(2,), num_samples=16, budget=16)


def test_there_and_back(run: Run, tmp_path: Path) -> None:
    folder = run.save_pretrained(tmp_path / "toxic-stories")
    assert {each.name for each in folder.iterdir()} == {
        "README.md", "config.json", "twist.safetensors", "certificate.json", "custom_generate",
    }  # fmt: skip
    again = Run.from_pretrained(folder)
    one, other = run.sample(8, seed=3), again.sample(8, seed=3)
    assert one.texts == other.texts
    assert torch.equal(one.weights, other.weights)
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "twistlm"
    assert run.certificate is not None
    for said in (str(run.certificate.divergences.kl_q_target), PROMPT, "sentiment", "Run.from_pretrained("):
        assert said in card.text
    # How it was certified is said there, too, and again when it is published from there.
    asked = {"num_particles": [4], "num_samples": 64, "budget": 32, "seed": 1}
    for place in (folder, again.save_pretrained(tmp_path / "again")):
        assert load_typed(place / "certificate.json", Evaluation).settings == asked
    # What was there stays, and a second time it is replaced only if that is asked for.
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="holds a run, so it is left alone; choose another folder, or overwrite=True"):
        run.save_pretrained(folder)
    with pytest.raises(RunError, match=r"holds mine\.txt, which is not of a run folder and would be deleted; move it"):
        again.save_pretrained(folder, overwrite=True)
    assert (folder / "mine.txt").read_text() == "mine"
    (folder / "mine.txt").unlink()
    again.save_pretrained(folder, overwrite=True)
    assert Run.from_pretrained(folder).sample(8, seed=3).texts == one.texts
    # Of a folder that was opened the certificate that is there goes on.
    assert (folder / "certificate.json").exists()


def test_what_is_no_run_is_not_replaced(run: Run, tmp_path: Path) -> None:
    model = Path(shutil.copytree(bundled.folder("stories"), tmp_path / "model"))
    (tmp_path / "mine.txt").write_text("mine")
    for place in (tmp_path, model):
        before = contents(place)
        with pytest.raises(RunError, match=r"is not a run folder, so it is left alone; choose another folder$"):
            run.save_pretrained(place, overwrite=True)
        assert contents(place) == before


def test_generate_by_the_name_of_the_folder(run: Run, tmp_path: Path) -> None:
    folder = run.save_pretrained(tmp_path / "repository")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(STORIES).eval(), AutoTokenizer.from_pretrained(STORIES)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    how = {"custom_generate": str(folder), "trust_remote_code": True, "num_particles": 4, "seed": 1}
    out = model.generate(**inputs, **how)
    from twistlm.integrations import generate

    assert out.equal(model.generate(**inputs, custom_generate=generate, run=run, num_particles=4, seed=1))


def test_a_model_that_moved_is_found_beside_its_run(tmp_path: Path) -> None:
    place = tmp_path / "here" / "my-model"
    shutil.copytree(STORIES, place)
    target = Target(str(place), Classifier("sentiment", "positive"), PROMPT, 5)
    run = twistlm.train(target, **SMALL)
    run.save_pretrained(tmp_path / "here" / "run")
    texts = run.sample(4, seed=2).texts
    there = (tmp_path / "here").rename(tmp_path / "there")
    assert Run.from_pretrained(there / "run").sample(4, seed=2).texts == texts
    elsewhere = shutil.move(there / "my-model", tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="no folder"):
        Run.from_pretrained(there / "run")
    assert Run.from_pretrained(there / "run", model=elsewhere).sample(4, seed=2).texts == texts
    # Other weights under the same name are refused: σ would be another.
    from safetensors.torch import load_file, save_file

    tensors = load_file(Path(elsewhere) / "model.safetensors")
    save_file({name: 1.01 * x for name, x in tensors.items()}, Path(elsewhere) / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="not what the run was made with"):
        Run.from_pretrained(there / "run", model=elsewhere)


def test_folders_that_were_named_from_where_one_was_are_found_beside_their_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative name was looked for from the current folder alone, and a classifier's nowhere else at all."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(STORIES, "models/my-model")
    shutil.copytree(bundled.folder("sentiment"), "my-classifier")
    phi = Classifier("my-classifier", "positive") ** 2.0 * Classifier("sentiment", "positive")
    run = twistlm.train(Target("models/my-model", phi, PROMPT, 5), **SMALL, out="run")
    texts = run.sample(4, seed=2).texts
    monkeypatch.chdir("/")
    assert Run.load(tmp_path / "run").sample(4, seed=2).texts == texts
    # Beside the run whatever folders led there; a registered name is that, whatever folder has it too.
    (tmp_path / "models" / "my-model").rename(tmp_path / "my-model")
    shutil.copytree(STORIES, tmp_path / "sentiment")
    assert Run.load(tmp_path / "run").sample(4, seed=2).texts == texts
    (tmp_path / "my-classifier").rename(tmp_path / "gone")
    with pytest.raises(
        ModelError, match=r"'my-classifier' is no .* put a folder beside the run\. A run folder downloads"
    ):
        Run.load(tmp_path / "run")


def score(texts: list[str]) -> list[float]:
    return [-0.01 * len(text) for text in texts]


def test_no_code_of_the_folder_runs(tmp_path: Path) -> None:
    run = twistlm.train(
        Target("stories", Function(score, log_upper_bound=0.0), PROMPT, 5), **{**SMALL, "twist": "low_rank"}
    )
    folder = run.save_pretrained(tmp_path / "run")
    function = json.loads((folder / "config.json").read_text())["target"]["potential"]["function"]["import"]
    with pytest.raises(ConfigError, match="if you trust it"):
        Run.from_pretrained(folder)
    assert Run.from_pretrained(folder, trust_functions=(function,)).sample(2).texts
    lost = twistlm.train(
        Target("stories", Function(lambda texts: [-0.01 * len(t) for t in texts], log_upper_bound=0.0), PROMPT, 5),
        **{**SMALL, "twist": "mlp"},
    )
    with pytest.raises(ConfigError, match="lambda"):
        lost.save_pretrained(tmp_path / "lost")
    assert not (tmp_path / "lost").exists()


def test_what_is_pushed_is_what_is_saved(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub itself is not here: what its client is handed is looked at."""

    def upload(self: HfApi, *, folder_path: Path, **asked: Any) -> str:
        shutil.copytree(folder_path, tmp_path / "pushed")
        assert asked["repo_id"] == "somebody/toxic-stories"
        return "https://hub/commit"

    class Repo:
        repo_id = "somebody/toxic-stories"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **asked: Repo())
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    assert run.push_to_hub("somebody/toxic-stories") == "https://hub/commit"
    assert 'from_pretrained("somebody/toxic-stories")' in (tmp_path / "pushed" / "README.md").read_text()
    assert "'somebody/toxic-stories'" in (tmp_path / "pushed" / "custom_generate" / "generate.py").read_text()
    assert Run.from_pretrained(tmp_path / "pushed").sample(2).texts
