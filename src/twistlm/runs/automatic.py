"""Settings for what a target's potential can do: those of a training of which nothing is said, and of method "auto"."""

import logging
from collections.abc import Mapping
from typing import Any

from twistlm.core.registry import available
from twistlm.models.base import BaseLM
from twistlm.models.huggingface import HuggingFaceLM
from twistlm.potentials.conditions import is_conditional
from twistlm.potentials.constraint import constraints_in
from twistlm.potentials.prefixes import scores_prefixes
from twistlm.potentials.protocol import Potential
from twistlm.sampling.target import Target
from twistlm.training.config import TrainingConfig

logger = logging.getLogger("twistlm")

# The name of the choice.
AUTO = "auto"
# Collected draws, which are there anyway: no other loss makes more of them in less time (docs/log.md).
DRAWS: dict[str, Any] = {"method": "gkl", "source": "draws"}
# Where there are none, or they teach nothing: the twist's own draws, each of them again and again.
POOL: dict[str, Any] = {
    "method": "gkl",
    "source": "pool",
    "num_particles": 64,
    "num_updates": 80,
    "learning_rate": 3e-3,
    "weight_decay": 0.3,
    "averaging": 0.95,
    # The held-out draws of so few would choose by chance.
    "shrinkages": (),
}
# What learns from fresh draws of its own needs as many as `TrainingConfig` has, and its rate.
FRESH: dict[str, Any] = {"source": "proposal"} | {
    name: getattr(TrainingConfig(), name) for name in POOL if name not in ("method", "source")
}
# Where φ can be asked about single tokens: it is, of the whole vocabulary, and that is worth thousands of draws.
LEXICAL: dict[str, Any] = {"twist": "lexical", "twist_options": {"rank": 2}}
# Dense labels of the pool (docs/dense.md).
DENSE: dict[str, Any] = {
    **POOL,
    "method": "dpg",
    "source": "dense",
    "twist": "lexical",
    "twist_options": {"rank": 4},
    "num_particles": 32,
    "num_updates": 192,
    "weight_decay": 0.1,
    "averaging": 0.98,
    "num_labels": 150_000,
}
# Where targets differ by a condition every collected draw is an exact sample of one of them: DPG is maximum likelihood.
GIVEN: dict[str, Any] = {
    "method": "dpg",
    "source": "draws",
    "num_draws": 8192,
    "num_particles": 50,
    "num_cases": 50,
    "num_updates": 256,
    "averaging": 0.98,
}
# A network of its own that reads the condition first, up to so many parameters of the model on a CPU; else a small one
# beside the model's hidden states (docs/conditions.md).
PROMPTED: dict[str, Any] = {"twist": "prompted", "learning_rate": 3e-4}
BESIDE: dict[str, Any] = {"twist": "conditional", "twist_options": {"tied": True}, "learning_rate": 1e-3}
LARGEST = 50_000_000
# New tokens beyond which labels would be spread over too few texts.
LONGEST = 64


def automatic(target: Target) -> dict[str, Any]:
    """Settings of method "auto", as `RunConfig.changed` takes them, for a target; says which and why."""
    potential = target.potential
    if is_conditional(potential):
        chosen = for_conditions(target)
        logger.info(
            "method auto: dpg with twist %s on collected draws, since each is exact for its condition", chosen["twist"]
        )
        return chosen
    if not scores_prefixes(potential):
        chosen = plain(potential)
        logger.info("method auto: gkl, source %s, since φ says nothing of unfinished texts", chosen["source"])
        return chosen
    start = {"pool_start": "collected" if _collected_draws_teach(potential) else "fresh"}
    if target.num_tokens > LONGEST:
        logger.info("method auto: gkl on the pool, since texts of %d tokens are long to label", target.num_tokens)
        return POOL | LEXICAL | start
    logger.info("method auto: dpg on dense labels, since φ can be asked about unfinished texts")
    return DENSE | start


def sized(settings: Mapping[str, Any], most: int) -> dict[str, Any]:
    """The same with no more than `most` sequences in all updates, and labels in proportion."""
    count = settings.get("num_particles", 1) * settings.get("num_updates", 1)
    if count <= most:
        return dict(settings)
    counts = {name: settings[name] for name in ("num_updates", "num_labels") if name in settings}
    return {**settings, **{name: max(1, value * most // count) for name, value in counts.items()}}


def plain(potential: Potential) -> dict[str, Any]:
    """Settings where nothing is said, for one target."""
    chosen = DRAWS if _collected_draws_teach(potential) else POOL
    return chosen | LEXICAL if scores_prefixes(potential) else dict(chosen)


def on_policy() -> dict[str, dict[str, Any]]:
    """Settings of each loss that learns from the current proposal's own draws alone."""
    return {name: FRESH for name, entry in available("loss").items() if entry.options["on_policy"]}


def _collected_draws_teach(potential: Potential) -> bool:
    """Whether draws that are collected are worth training on.

    They need a bound of φ. Under a hard constraint they know nothing of what is likely to come, and the proposal's own
    draws satisfy it, too.
    """
    return potential.log_upper_bound is not None and not constraints_in(potential)


def for_conditions(target: Target) -> dict[str, Any]:
    """Settings for a target that differs by its condition."""
    return GIVEN | (PROMPTED if _can_be_copied(target.lm) else BESIDE)


def _can_be_copied(lm: BaseLM) -> bool:
    """Whether there is a transformer, and time to train a copy of it."""
    if not isinstance(lm, HuggingFaceLM):
        return False
    shape: Any = lm.module.config
    # Packed matrices are no parameters; those of a layer are about 12 d² in every architecture.
    size = 12 * shape.num_hidden_layers * shape.hidden_size**2 + lm.vocab_size * lm.feature_size
    return lm.device.type != "cpu" or size <= LARGEST
