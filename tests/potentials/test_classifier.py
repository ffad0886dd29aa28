"""Tiny real classifiers with random weights, saved to folders and read back as a user's would be."""

import math
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.nn.functional import logsigmoid
from transformers import GPT2Config, GPT2ForSequenceClassification, PreTrainedTokenizerFast

from tests.architectures import tiny_lm
from tests.scorers import reference, save
from twistlm.core.errors import ConfigError, ModelError
from twistlm.potentials import Classes, Classifier, Threshold, evaluate
from twistlm.potentials.scorer import PASS_TOKENS, Scorer, passes

TEXTS = ["hi dog", "hi cats", "a", "so so so dog", "cat"]


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("three"), ["Negative", "Neutral", "Positive"])


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("single"), ["LABEL_0"])


@pytest.fixture(scope="module")
def multi(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("multi"), ["rude", "kind"], problem_type="multi_label_classification")


def assert_equal(value: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.max() - expected.min() > 1e-3  # a constant would prove nothing
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("label", ["Neutral", "neutral", 1])
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_softmax_over_the_labels_in_any_batching(three, label, batch_size) -> None:
    value = Classifier(three, label, beta=2.0, batch_size=batch_size).log_phi_texts(TEXTS)
    assert_equal(value, 2 * reference(three, TEXTS).log_softmax(-1)[:, 1])


@pytest.mark.parametrize("count", [1, 4])
def test_many_texts_are_scored_as_one_by_one_by_any_number_of_threads(three, threads, count) -> None:
    threads(count)
    texts = [" ".join(["so"] * (1 + i % 8) + ["dog"] * (i % 3)) for i in range(200)]
    logits = torch.stack([Classifier(three, i, batch_size=16).logit_texts(texts) for i in range(3)], -1)
    torch.testing.assert_close(logits, reference(three, texts), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [1, 7, 128])
def test_a_pass_has_so_many_texts_and_so_many_tokens_at_most(size) -> None:
    lengths = [1, 1, 2, 5, 8, 1000, 2000, 2000, 2001, 5000, 6000]
    found = [list(each) for each in passes(range(len(lengths)), lengths, size)]
    assert [at for chosen in found for at in chosen] == list(range(len(lengths)))
    for chosen in found:
        assert len(chosen) <= size
        assert len(chosen) == 1 or len(chosen) * lengths[chosen[-1]] <= PASS_TOKENS
    if size == 128:
        assert found == [[0, 1, 2, 3, 4], [5, 6], [7, 8], [9], [10]]


def test_probabilities_of_all_labels_sum_to_one(three) -> None:
    total = sum(Classifier(three, i).log_phi_texts(TEXTS).exp() for i in range(3))
    torch.testing.assert_close(total, torch.ones(5, dtype=torch.float64))


def test_a_multi_label_model_has_a_sigmoid_per_label(multi) -> None:
    assert_equal(Classifier(multi, "kind").log_phi_texts(TEXTS), logsigmoid(reference(multi, TEXTS)[:, 1]))


def test_the_sign_of_a_single_logit(single) -> None:
    logit = reference(single, TEXTS)[:, 0]
    assert_equal(Classifier(single, "toxic", logit_means="label").log_phi_texts(TEXTS), logsigmoid(logit))
    not_label = Classifier(single, "toxic", logit_means="not label")
    assert_equal(not_label.log_phi_texts(TEXTS), logsigmoid(-logit))
    assert_equal(not_label.logit_texts(TEXTS), logit)
    assert_equal(Classifier(single, "label_0").log_phi_texts(TEXTS), logsigmoid(logit))


def test_the_sign_is_never_guessed(single, three) -> None:
    with pytest.raises(ConfigError, match="say what its single logit means"):
        Classifier(single, "toxic").log_phi_texts(["a"])
    with pytest.raises(ConfigError, match="for models with one logit; this one has 3"):
        Classifier(three, "Neutral", logit_means="label").log_phi_texts(["a"])


def test_the_papers_threshold_on_the_raw_logit(single, lm, batch) -> None:
    logit = reference(single, ["hi dog", "hi cat", "hi dog"])[:, 0]
    eta = logit.mean().item()
    potential = Threshold(
        Classifier(single, "toxic", logit_means="not label"), eta, on="logit", direction="<=", eps=1e-16
    )
    value = evaluate(potential.bind(lm), *batch)
    expected = [math.log1p(1e-16) if score <= eta else math.log(1e-16) for score in logit.tolist()]
    assert value.tolist() == expected
    assert len(set(expected)) == 2


def test_each_distinct_text_is_classified_once(three, lm, batch) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(three)
    rows: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    pair = (model.train(), AutoTokenizer.from_pretrained(three))
    value = evaluate(Classifier(pair, "Neutral").bind(lm), *batch)
    assert rows == [2]
    # Dropout is off although the pair came in training mode.
    assert_equal(value, reference(three, ["hi dog", "hi cat", "hi dog"]).log_softmax(-1)[:, 1])


def test_long_texts_are_truncated_to_the_models_length(three) -> None:
    long, cut = " ".join(["dog", "cat"] * 50), " ".join(["dog", "cat"] * 5)
    value = Classifier(three, "Neutral").log_phi_texts([long, cut, "dog"])
    assert value[0] == pytest.approx(value[1].item(), abs=1e-6)
    assert value[0] != pytest.approx(value[2].item(), abs=1e-3)


def test_without_a_padding_token_texts_are_scored_one_by_one(three) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(three)
    tokenizer.pad_token = None
    pair = (AutoModelForSequenceClassification.from_pretrained(three), tokenizer)
    assert_equal(Classifier(pair, 0).log_phi_texts(TEXTS), reference(three, TEXTS).log_softmax(-1)[:, 0])


def test_an_unknown_label_lists_the_known_ones(three) -> None:
    for label in ("angry", 3, -1):
        with pytest.raises(ConfigError, match="0 'Negative', 1 'Neutral', 2 'Positive'"):
            Classifier(three, label).log_phi_texts(["a"])


def test_a_model_that_is_not_there_offers_the_bundled_ones(tmp_path) -> None:
    with pytest.raises(ModelError, match=r"cannot load the classifier .*sentiment.*toxicity") as caught:
        Classifier(tmp_path, "toxic").log_phi_texts(["a"])
    assert "\n" not in str(caught.value)


def test_a_language_model_is_not_taken_for_a_classifier(three, tmp_path) -> None:
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    config = BertConfig.from_pretrained(three)
    BertForMaskedLM(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(three).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no weights for .*classifier"):
        Classifier(tmp_path, 0).log_phi_texts(["a"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"beta": 0.0}, "beta"), ({"logit_means": "toxic"}, "logit_means"), ({"batch_size": 0}, "batch_size")],
)
def test_settings_are_checked_before_anything_is_loaded(arguments, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Classifier("nowhere", "toxic", **arguments)


def test_classes_are_all_of_a_classifier_that_chooses_one(three, multi) -> None:
    """Of two labels of five a class was drawn by their shares, and scored by what the classifier says: not p₀'s law."""
    lm = tiny_lm()
    assert Classes(str(three), ("positive", "Negative", "neutral")).bind(lm).labels
    for labels in (("Negative", "Positive"), ("Negative", "Neutral", "Neutral"), ("Negative", "Neutral", "Good")):
        with pytest.raises(
            ConfigError, match=r"must be all of the classifier's, once each.*: Negative, Neutral, Positive"
        ):
            Classes(str(three), labels).bind(lm)
    with pytest.raises(ConfigError, match="says of each label by itself"):
        Classes(str(multi), ("rude", "kind")).bind(lm)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("texts", [[""], ["", ""], ["hi dog", "", "so"]])
def test_an_empty_text_is_one_token_where_the_tokenizer_writes_none(texts: list[str], padded: bool) -> None:
    """As GPT-2's: an answer that ends at once was no input at all, and ended the run."""
    words = Tokenizer(WordLevel({"hi": 0, "dog": 1, "so": 2, "<end>": 3, "<pad>": 4}, unk_token="so"))
    words.pre_tokenizer = Whitespace()
    pad = {"pad_token": "<pad>"} if padded else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", **pad)
    assert tokenizer("")["input_ids"] == []
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=5, n_positions=8, n_embd=8, n_layer=1, n_head=2, num_labels=3, pad_token_id=4 if padded else None
    )
    network = GPT2ForSequenceClassification(config).eval()
    found = Scorer(network, tokenizer).logits(texts, 128)
    written = [[3] if text == "" else tokenizer(text)["input_ids"] for text in texts]
    with torch.no_grad():
        expected = torch.cat([network(input_ids=torch.tensor([ids])).logits for ids in written]).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
