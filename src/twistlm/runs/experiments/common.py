"""Training, the smallest size, and learning rates by method, shared by the paper's experiments."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from twistlm.runs.automatic import LEXICAL_DPG, LEXICAL_TWIST
from twistlm.runs.config import EvaluationConfig, RunConfig
from twistlm.training.config import TrainingConfig

# Fresh draws in every update, Adam without decay, no early stop, no shrinkage and nothing beside the twist: methods are
# to be compared as they were published. Base draws serve evaluation; the training fold serves `--source exact`.
PAPER_LIKE = RunConfig(
    twist="mlp",
    training=TrainingConfig(
        loss="ctl",
        target_source="proposal",
        intermediate_source="proposal",
        num_particles=100,
        num_updates=64,
        learning_rate=1e-3,
        weight_decay=0.0,
        betas=(0.9, 0.999),
        evaluate_every=16,
        patience=None,
        shrinkages=(),
        informed="off",
    ),
    folds=(0.4, 0.1, 0.5),
    num_siblings=0,
    chunk=2048,
    evaluation=EvaluationConfig((16, 64), 512, 512, during_training=True),
)


# The published size of toxicity and sentiment: 2,048 updates, 2,000 exact samples, 500 particles.
PAPER = replace(
    PAPER_LIKE,
    num_exact=2000,
    evaluation=EvaluationConfig((500,), 2000, 2000, during_training=True),
    training=replace(PAPER_LIKE.training, num_updates=2048),
)


# Collected draws, and few parameters to fit to them: what can be learnt in a minute.
ON_DRAWS = RunConfig(
    twist="lexical",
    twist_options={"rank": 2},
    training=TrainingConfig(
        target_source="draws",
        intermediate_source="draws",
        num_particles=1024,
        num_updates=100,
        learning_rate=3e-3,
        weight_decay=0.3,
        evaluate_every=10,
        evaluation_samples=128,
        patience=40,
    ),
)


def smoke(config: RunConfig, num_draws: int = 2048) -> RunConfig:
    """The same in seconds: it runs, and learns next to nothing."""
    return replace(
        config,
        num_draws=num_draws,
        num_exact=None,
        training=replace(config.training, num_particles=32, num_updates=4),
        evaluation=EvaluationConfig((2, 4), 32, 16, during_training=True),
    )


def rates(
    by_method: Mapping[str, float], others: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """Each method with its learning rate, besides what `others` says of it."""
    return {method: {**(others or {}).get(method, {}), "learning_rate": rate} for method, rate in by_method.items()}


# Our seventh method: the pool of all draws, and few parameters to fit to them (docs/results.md).
GKL_ON_THE_POOL = {
    "target_source": "pool",
    "intermediate_source": "pool",
    "twist": "low_rank",
    "twist_options": {"rank": 8},
    "learning_rate": 3e-3,
    "weight_decay": 0.3,
}

# Every draw again and again: of a poor twist soon, and of a better one from update 32 on.
DPG_ON_THE_POOL = {**LEXICAL_TWIST, "source": "pool", "pool_first": 8, "num_particles": 50, "num_updates": 128}

# What a preset has beside the published methods, with as many sequences: the settings of method "auto", on fresh draws;
# and the same on the pool (docs/fresh.md).
LEXICAL_METHODS = {
    "fresh": {**LEXICAL_DPG, "num_updates": 16},
    "pooled": DPG_ON_THE_POOL,
}
