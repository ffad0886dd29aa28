"""The two packaged toxicity models that `toxicity` learns from, as functions from texts to probabilities."""

import pickle
import warnings
from collections.abc import Sequence
from functools import lru_cache
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


@lru_cache(maxsize=1)
def _linear() -> tuple[Any, Any]:
    data = folder("profanity_check") / "data"
    return _read(data / "vectorizer.joblib"), _read(data / "model.joblib")


def profanity(texts: Sequence[str]) -> Tensor:
    """alt-profanity-check: p(offensive), float64 [B], by a calibrated linear classifier of words."""
    vectoriser, classifier = _linear()
    probabilities = classifier.predict_proba(vectoriser.transform(list(texts)))[:, 1]
    return torch.from_numpy(np.asarray(probabilities, dtype=np.float64))


def comments(texts: Sequence[str]) -> Tensor:
    """toxic-comment-classifier: p(toxic), float64 [B], by a bidirectional LSTM trained on Wikipedia's comments."""
    return Jigsaw("toxic").log_phi_texts(list(texts)).exp()


def both(texts: Sequence[str]) -> Tensor:
    """p(toxic) by each teacher: float64 [B, 2], BiLSTM first."""
    return torch.stack([comments(texts), profanity(texts)], -1)
