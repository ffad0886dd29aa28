"""Settings for what a target's model and potential can do: where nothing is said, and of method "auto"."""

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
# What learns most from few draws: with what φ says of every token of the vocabulary, which is worth thousands of them.
LEXICAL_TWIST: dict[str, Any] = {
    "method": "dpg",
    "twist": "lexical",
    "twist_options": {"rank": 4},
    "learning_rate": 3e-3,
    "weight_decay": 0.1,
    "averaging": 0.98,
    # The held-out draws of so few would choose by chance.
    "shrinkages": (),
}
# Where drawing costs little and φ can be asked about single tokens: every update learns from the twist's own, fresh
# draws. No other settings bring as much for as many sequences (docs/log.md).
LEXICAL_DPG: dict[str, Any] = {
    **LEXICAL_TWIST,
    "source": "proposal",
    # So many are drawn in half the time of eight times fifty, and what is learned of them is the same.
    "num_particles": 400,
    "num_minibatches": 8,
    # Of a set of prompts so many at a time: weights are those of a prompt's own draws, and fifty are not few.
    "num_cases": 8,
    # The noise that is left bears longer steps.
    "baseline": True,
    "learning_rate": 6e-3,
    "num_updates": 24,
    # Of more updates the noise of batches is what would remain; few gain nothing from a rate that falls.
    "decay_after": 24,
    "evaluate_every": 4,
    # Of a rare target a few sequences would have most of the weight.
    "max_share": 0.05,
}
# Collected draws, which are there anyway: next to no cost, and no other loss makes more of them.
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
    "shrinkages": (),
}
LEXICAL: dict[str, Any] = {"twist": "lexical", "twist_options": {"rank": 2}}
# What learns from the current proposal alone needs as many sequences as `TrainingConfig` has, and its rate.
FRESH: dict[str, Any] = {"source": "proposal"} | {
    name: getattr(TrainingConfig(), name) for name in LEXICAL_DPG if name in TrainingConfig.__dataclass_fields__
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


def automatic(target: Target) -> dict[str, Any]:
    """Settings of method "auto", as `RunConfig.changed` takes them, for a target; says which and why."""
    chosen, reason = suited(target)
    logger.info(said(chosen, reason))
    return chosen


def said(chosen: Mapping[str, Any], reason: str) -> str:
    """What `suited` has found, as a line."""
    return f"method auto: {chosen['method']}, source {chosen['source']}, since {reason}"


def suited(target: Target) -> tuple[dict[str, Any], str]:
    """Settings for a target, as `RunConfig.changed` takes them, and the reason."""
    potential = target.potential
    if is_conditional(potential):
        beside = PROMPTED if isinstance(target.lm, HuggingFaceLM) and _is_quick(target.lm) else BESIDE
        return GIVEN | beside, "each collected draw is exact for its condition"
    tells = scores_prefixes(potential)
    if tells and _is_quick(target.lm):
        return dict(LEXICAL_DPG), "drawing is quick, and φ can be asked about single tokens"
    chosen = DRAWS if _collected_draws_teach(potential) else POOL
    if tells:
        return chosen | LEXICAL, "drawing takes long"
    return dict(chosen), "φ says nothing of unfinished texts"


def sized(settings: Mapping[str, Any], most: int) -> dict[str, Any]:
    """The same with no more than `most` sequences in all updates."""
    if "num_updates" not in settings:
        return dict(settings)
    each = min(settings.get("num_particles", 1), most)
    return {**settings, "num_particles": each, "num_updates": min(settings["num_updates"], most // each)}


def on_policy() -> dict[str, dict[str, Any]]:
    """Settings of each loss that learns from the current proposal's own draws alone."""
    return {name: FRESH for name, entry in available("loss").items() if entry.options["on_policy"]}


def _collected_draws_teach(potential: Potential) -> bool:
    """Whether draws that are collected are worth training on.

    They need a bound of φ. Under a hard constraint they know nothing of what is likely to come, and the proposal's own
    draws satisfy it, too.
    """
    return potential.log_upper_bound is not None and not constraints_in(potential)


def _is_quick(lm: BaseLM) -> bool:
    """Whether drawing from the model, or training a copy of it, is a matter of a minute."""
    if not isinstance(lm, HuggingFaceLM):
        return True
    return lm.device.type != "cpu" or lm.num_parameters <= LARGEST
