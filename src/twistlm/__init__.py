"""Probabilistic inference in language models by twisted sequential Monte Carlo::

    toxic = twistlm.potentials.Classifier("toxicity", label="toxic")
    target = twistlm.Target("stories", toxic, prompt="Once upon a time, there was a", num_tokens=20)
    run = twistlm.train(target, method="ctl", out="runs/toxic")
    run.sample(32).texts
    run.evaluate()

Options that are objects are of classes that are here: `RunConfig`, `TrainingConfig` and `EvaluationConfig` for `train`,
`Effort` for `certify` (whose keywords are the fields of `Spending`), `Search` for `probability`.
What annotations need besides is in `twistlm.types`.

Everything is loaded at first use, so importing this costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twistlm import potentials, types
    from twistlm.certificates.certificate import Certificate
    from twistlm.certificates.effort import Search
    from twistlm.certificates.probability import Probability
    from twistlm.certificates.spending import Effort, Spending
    from twistlm.models.chats import chat
    from twistlm.runs.certify import certify
    from twistlm.runs.config import EvaluationConfig, RunConfig
    from twistlm.runs.engines import engine
    from twistlm.runs.probability import probability
    from twistlm.runs.run import Run
    from twistlm.runs.texts import TextSamples
    from twistlm.runs.train import fine_tune, train
    from twistlm.sampling.exact.collection import Collection
    from twistlm.sampling.prompts import Prompts
    from twistlm.sampling.target import Target
    from twistlm.training import losses
    from twistlm.training.config import TrainingConfig

__all__ = [
    "Certificate",
    "Collection",
    "Effort",
    "EvaluationConfig",
    "Probability",
    "Prompts",
    "Run",
    "RunConfig",
    "Search",
    "Spending",
    "Target",
    "TextSamples",
    "TrainingConfig",
    "certify",
    "chat",
    "engine",
    "fine_tune",
    "losses",
    "potentials",
    "probability",
    "train",
    "types",
]
__version__ = "0.1.0"

_HOMES = {
    "Run": "twistlm.runs.run",
    "RunConfig": "twistlm.runs.config",
    "EvaluationConfig": "twistlm.runs.config",
    "Target": "twistlm.sampling.target",
    "train": "twistlm.runs.train",
    "Certificate": "twistlm.certificates.certificate",
    "certify": "twistlm.runs.certify",
    "Probability": "twistlm.certificates.probability",
    "probability": "twistlm.runs.probability",
    "Search": "twistlm.certificates.effort",
    "Effort": "twistlm.certificates.spending",
    "Spending": "twistlm.certificates.spending",
    "TextSamples": "twistlm.runs.texts",
    "TrainingConfig": "twistlm.training.config",
    "chat": "twistlm.models.chats",
    "engine": "twistlm.runs.engines",
    "Prompts": "twistlm.sampling.prompts",
    "Collection": "twistlm.sampling.exact.collection",
    "fine_tune": "twistlm.runs.train",
}
_MODULES = {"potentials": "twistlm.potentials", "losses": "twistlm.training.losses", "types": "twistlm.types"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'twistlm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
