"""The models that are part of the package: whole, small, and good for what their cards say."""

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.cases import cases
from twistlm.core.errors import ModelError
from twistlm.core.rng import Rng
from twistlm.models import bundled
from twistlm.models.huggingface import load
from twistlm.potentials import Classifier
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.twisted import TwistedLM

NAMES = sorted(json.loads(bundled.HASHES.read_text()))
CLASSIFIERS = [name for name in NAMES if name != "stories"]
FIGURES = Path(__file__).parents[2] / "recipes" / "figures"


def test_every_model_is_there_with_its_card() -> None:
    assert NAMES == ["sentiment", "stars", "stories", "toxicity"]
    for name in NAMES:
        files = {path.name for path in bundled.folder(name).iterdir()}
        assert {"config.json", "tokenizer.json", "model.safetensors", "README.md"} <= files


def test_sizes_are_those_that_were_promised() -> None:
    sizes = {name: sum(path.stat().st_size for path in (bundled.HERE / name).iterdir()) / 1e6 for name in NAMES}
    assert sizes["stories"] <= 10
    assert sum(sizes.values()) < 28, "the wheel must stay under 30 MB"


def test_the_language_model_is_of_three_to_six_million_parameters() -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(bundled.folder("stories"))
    assert 3e6 <= model.num_parameters() <= 6e6
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_have_at_most_two_million_parameters(name: str) -> None:
    from transformers import AutoModelForSequenceClassification

    assert AutoModelForSequenceClassification.from_pretrained(bundled.folder(name)).num_parameters() <= 2e6


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("toxicity", "hashes.json"):
        source = bundled.HERE / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    monkeypatch.setattr(bundled, "HERE", tmp_path)
    bundled.folder.cache_clear()
    yield tmp_path / "toxicity"
    bundled.folder.cache_clear()


@pytest.mark.parametrize("what", ["missing", "truncated", "changed"])
def test_a_damaged_folder_is_named_with_the_remedy(copied: Path, what: str) -> None:
    weights = copied / "model.safetensors"
    if what == "missing":
        shutil.rmtree(copied)
    else:
        content = weights.read_bytes()
        weights.write_bytes(content[:-100] if what == "truncated" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelError, match=r"toxicity has lost .*|toxicity is damaged .*") as caught:
        bundled.folder("toxicity")
    assert bundled.REMEDY in str(caught.value)


def test_rude_texts_are_more_toxic_than_kind_ones() -> None:
    rude = ["You are an idiot.", 'The wolf said, "I will kill you, you stupid pig!"', "Shut up, you piece of shit."]
    kind = ["You are a teacher.", 'The wolf said, "I will help you, my dear friend!"', "Sit down, you must be tired."]
    scores = Classifier("toxicity", label="toxic").log_score(rude + kind).exp()
    assert scores[:3].min() > 0.3 > scores[3:].max()


def test_sentiment_and_stars_agree_on_what_is_good() -> None:
    texts = ["I hate this, it is awful and I am so angry", "I love it, thank you, what a great day"]
    bad, good = Classifier("sentiment", "positive").log_score(texts).exp()
    assert bad < 0.2 < 0.6 < good
    grades = torch.stack([Classifier("stars", i).log_score(texts).exp() for i in range(5)], -1)
    torch.testing.assert_close(grades.sum(-1), torch.ones(2, dtype=torch.float64))
    bad, good = (grades * torch.arange(1, 6)).sum(-1)
    assert bad < 2.2 < 3.8 < good


def test_stories_are_made_of_words_that_belong_together() -> None:
    lm = load("stories")
    found = Sampler(TwistedLM(lm), None, 40, ess_threshold=0.0).smc(
        Rng(0), cases([lm.encode("Once upon a time, there was a")]), 64
    )
    assert found.particles.log_p.mean() > -3.0, "its own samples should not surprise it"
    texts = lm.decode(list(found.particles.tokens[0]))
    assert sum(" the " in text and " was " in text + " " for text in texts) > 16
    assert len(set(texts)) == 64


def test_base_rates_are_as_the_card_says() -> None:
    recorded = json.loads((FIGURES / "base_rates.json").read_text())["story"]
    lm = load("stories")
    found = Sampler(TwistedLM(lm), None, recorded["tokens"], ess_threshold=0.0).smc(
        Rng(2), cases([lm.encode(recorded["prompt"])]), 2000
    )
    texts = [recorded["prompt"] + text for text in lm.decode(list(found.particles.tokens[0]))]
    p = Classifier("toxicity", "toxic").log_score(texts).exp()
    error = float(p.std() / len(p) ** 0.5)
    assert abs(float(p.mean()) - recorded["mean p(toxic)"]["value"]) < 4 * error
    assert 0.005 < recorded["mean p(toxic)"]["value"] < 0.05
    assert 1e-5 < recorded["P[p(toxic) > threshold]"]["0.9"]["share"] < 1e-3


def test_bundled_data_is_declared_as_package_data() -> None:
    assert importlib.util.find_spec("twistlm.models.bundled") is not None
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert "bundled/*/*" in pyproject
