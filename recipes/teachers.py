"""The two packaged toxicity models that `toxicity` learns from, as functions from texts to probabilities."""

import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib.numpy_pickle import NumpyUnpickler
from torch import Tensor

from packages import folder
from twistlm.potentials import Jigsaw

ALLOWED = ("sklearn.", "numpy", "scipy.sparse", "joblib.numpy_pickle", "collections", "builtins")


class _Restricted(NumpyUnpickler):  # type: ignore[misc]
    """Reads scikit-learn's models and nothing that runs anything else."""

    def find_class(self, module: str, name: str) -> Any:
        """Classes of the known libraries only."""
        if module.startswith(ALLOWED) and not (module == "builtins" and name in ("eval", "exec", "getattr", "open")):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a classifier")


def _read(path: Path) -> Any:
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _Restricted(str(path), file, ensure_native_byte_order=False).load()


class Profanity:
    """alt-profanity-check: p(offensive) [B] by a calibrated linear classifier of words."""

    def __init__(self) -> None:
        data = folder("profanity_check") / "data"
        self.vectoriser, self.classifier = _read(data / "vectorizer.joblib"), _read(data / "model.joblib")

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Probabilities, float64."""
        probabilities = self.classifier.predict_proba(self.vectoriser.transform(list(texts)))[:, 1]
        return torch.from_numpy(np.asarray(probabilities, dtype=np.float64))


class Comments:
    """toxic-comment-classifier: p(toxic) [B] by a bidirectional LSTM trained on Wikipedia's comments."""

    def __init__(self) -> None:
        self.potential = Jigsaw("toxic")

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Probabilities, float64."""
        return self.potential.log_phi_texts(list(texts)).exp()


def both(texts: Sequence[str]) -> Tensor:
    """p(toxic) by each teacher: float64 [B, 2], BiLSTM first."""
    return torch.stack([Comments()(texts), Profanity()(texts)], -1)
