"""What evaluating a run leaves in its folder: the same from Python as from the command, and never in another's way."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import twistlm
from tests.core.test_folders import contents
from twistlm import Run, Target
from twistlm.cli import main
from twistlm.cli.options import OfSMC
from twistlm.core.errors import ConfigError, ExactSamplesError, RunError
from twistlm.core.folders import writing
from twistlm.core.storage import as_json
from twistlm.potentials import Classifier

SMALL: dict[str, Any] = {"num_particles": 2, "num_samples": 16, "budget": 8}
CHEAP = ["--num-particles", "2", "--num-samples", "16", "--budget", "8"]
TRAINING: dict[str, Any] = {"twist": "lexical", "num_updates": 1, "num_draws": 64, "num_particles": 8, "seed": 0}


def target() -> Target:
    return Target("stories", Classifier("sentiment", "positive"), "Once upon a time, there was a", 3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    twistlm.train(target(), out=path, **TRAINING)
    return path


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def saved(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "certificate.json").read_text())
    return found


def certificate_of(folder: Path) -> dict[str, Any]:
    """As the run finds it when it is opened again."""
    certificate = Run.load(folder).certificate
    assert certificate is not None
    return as_json(certificate)


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_times(each) for name, each in value.items() if name not in ("seconds", "time")}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def test_what_is_found_is_there_when_the_run_is_opened_again(folder: Path) -> None:
    run = Run.load(folder)
    assert run.certificate is None
    found = run.evaluate(**SMALL, seed=3)
    assert run.certificate is found
    assert certificate_of(folder) == as_json(found)
    assert saved(folder)["settings"] == {"num_particles": [2], "num_samples": 16, "budget": 8, "seed": 3}
    # Each is kept.
    run.evaluate(**SMALL, seed=4)
    run.evaluate(**SMALL, seed=4)
    kept = sorted((folder / "evaluations").iterdir())
    assert [json.loads(each.read_text())["settings"]["seed"] for each in kept] == [3, 4, 4]
    assert saved(folder)["settings"]["seed"] == 4
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_the_command_and_the_method_write_the_same(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    assert main(["evaluate", str(folder), *CHEAP, "--seed", "5", "--no-informed"]) == 0
    run, options = Run.load(other), OfSMC(informed=False).for_run(())
    assert options["informed"] is False
    run.evaluate(**SMALL, seed=5, before=True, **options)
    run.evaluate(**SMALL, seed=5, **options)
    assert without_times(saved(other)) == without_times(saved(folder))
    # The first of the two is in one file with the second.
    assert set(saved(other)["certificates"]) == {"before", "after"}


def test_a_run_whose_draws_are_gone_says_so_and_gets_them_again(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    draws = folder / "draws.safetensors"
    made = draws.read_bytes()
    remedy = r"restore it, or delete it and make it again with what made it \(of a run: `twistlm train … --resume`\)"
    for damaged, said in ((made[:-8], "is corrupt"), (made[:-1] + bytes([made[-1] ^ 1]), "cannot be taken for draws")):
        draws.unlink()
        draws.write_bytes(damaged)
        with pytest.raises((RunError, ExactSamplesError), match=f"{said}.*{remedy}"):
            Run.load(folder)
    draws.unlink()
    Run.load(folder, draws=False)
    assert not caplog.records
    Run.load(folder)
    assert "draws.safetensors is gone: a certificate knows less without; restore it, or collect" in caplog.text
    assert caplog.records[0].message.endswith("[TW107]")
    # A published run has none by design.
    caplog.clear()
    Run.load(Run.load(folder, draws=False).save_pretrained(tmp_path / "published"))
    assert not caplog.records
    twistlm.train(target(), out=folder, exists="resume", **TRAINING)
    assert draws.read_bytes() == made


def test_the_base_models_takes_no_place_of_the_twists(folder: Path) -> None:
    run = Run.load(folder)
    after = run.evaluate(**SMALL, seed=6)
    run.evaluate(**SMALL, seed=7, before=True)
    assert saved(folder)["settings"]["seed"] == 6
    assert set(saved(folder)["certificates"]) == {"after"}
    _, beside = sorted((folder / "evaluations").iterdir())
    assert set(json.loads(beside.read_text())["certificates"]) == {"before"}
    run.evaluate(**SMALL, seed=6, before=True)
    assert set(saved(folder)["certificates"]) == {"before", "after"}
    assert certificate_of(folder) == as_json(after)


def test_what_is_not_to_be_saved_changes_nothing(folder: Path) -> None:
    before = contents(folder)
    Run.load(folder).evaluate(**SMALL, save=False)
    assert contents(folder) == before
    run = twistlm.train(target(), **TRAINING)
    run.evaluate(**SMALL)
    assert run.certificate is not None
    with pytest.raises(ConfigError, match="no folder to save in: train it with out="):
        run.evaluate(**SMALL, save=True)


def test_what_somebody_else_writes_is_refused_before_the_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, before = Run.load(folder), contents(folder)
    sampled = []
    monkeypatch.setattr(Run, "sampler", lambda *given, **more: sampled.append(more))
    with writing(folder), pytest.raises(RunError, match="is being written"):
        run.evaluate(**SMALL)
    assert not sampled
    assert contents(folder) == before


def test_another_twist_gets_no_certificate_of_this_one(finished: Path, folder: Path, tmp_path: Path) -> None:
    run = Run.load(folder)
    other = twistlm.train(target(), out=tmp_path / "other", **{**TRAINING, "num_updates": 3})
    assert other.folder is not None
    shutil.copy(other.folder.twist, folder / "new")
    (folder / "new").replace(folder / "twist.safetensors")
    with pytest.raises(RunError, match="has another twist by now"):
        run.evaluate(**SMALL)
    assert not (folder / "certificate.json").exists()
    # Opened again it has one; and once more another takes the twist's place, it is none of that.
    assert as_json(Run.load(folder).evaluate(**SMALL)) == certificate_of(folder)
    shutil.copy(finished / "twist.safetensors", folder)
    assert Run.load(folder).certificate is None


def test_what_was_published_stays_as_it_is(folder: Path, tmp_path: Path) -> None:
    published = Run.load(folder).save_pretrained(tmp_path / "published")
    before = contents(published)
    opened = Run.from_pretrained(published)
    found = opened.evaluate(**SMALL)
    assert contents(published) == before
    assert opened.certificate is found
    opened.evaluate(**SMALL, save=True)
    assert saved(published)["certificates"]["after"]["num_sequences"] == found.num_sequences


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TWISTLM_CACHE", str(tmp_path / "cache"))
    return f"memory://bucket/{tmp_path.name}/run"


def test_a_run_in_a_store_is_saved_there(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = twistlm.train(target(), out=url, **TRAINING)
    assert url in repr(trained)
    found = trained.evaluate(**SMALL)
    monkeypatch.setenv("TWISTLM_CACHE", str(tmp_path / "another machine's"))
    opened = Run.load(url)
    assert opened.certificate is not None
    assert as_json(opened.certificate) == as_json(found)
    opened.evaluate(**SMALL, seed=8)
    monkeypatch.setenv("TWISTLM_CACHE", str(tmp_path / "a third one's"))
    again = Run.load(url).certificate
    assert again is not None
    assert as_json(again) != as_json(found)


def test_one_that_training_made_on_the_way_is_not_the_runs() -> None:
    run = twistlm.train(target(), evaluation={"during_training": True}, **{**TRAINING, "num_updates": 2})
    assert [row["update"] for row in run.history if row["kind"] == "certificate"]
    assert run.certificate is None
