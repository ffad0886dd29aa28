"""Probabilistic inference in language models by twisted sequential Monte Carlo.

    toxic = twistlm.potentials.Classifier("toxicity", label="toxic")
    target = twistlm.Target("stories", toxic, prompt="Once upon a time, there was a", num_tokens=20)
    run = twistlm.train(target, method="ctl", out="runs/toxic")
    run.sample(32).texts
    run.evaluate()

Everything is loaded at first use, so importing this costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twistlm import potentials
    from twistlm.api import Run, RunConfig, train
    from twistlm.certificate import Certificate
    from twistlm.certifying import certify
    from twistlm.rare_events import Probability, probability
    from twistlm.target import Target
    from twistlm.training import TrainingConfig

__all__ = [
    "Certificate",
    "Probability",
    "Run",
    "RunConfig",
    "Target",
    "TrainingConfig",
    "certify",
    "potentials",
    "probability",
    "train",
]
__version__ = "0.1.0"

_HOMES = {
    "Run": "twistlm.api",
    "RunConfig": "twistlm.api",
    "Target": "twistlm.target",
    "train": "twistlm.api",
    "Certificate": "twistlm.certificate",
    "certify": "twistlm.certifying",
    "Probability": "twistlm.rare_events",
    "probability": "twistlm.rare_events",
    "TrainingConfig": "twistlm.training",
}


def __getattr__(name: str) -> Any:
    if name == "potentials":
        return importlib.import_module("twistlm.potentials")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'twistlm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
