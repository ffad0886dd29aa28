"""Method "auto": settings for what a target's potential can do."""

import logging
from typing import Any

from twistlm.potentials.conditions import is_conditional
from twistlm.potentials.constraint import constraints_in
from twistlm.potentials.prefixes import scores_prefixes
from twistlm.potentials.protocol import Potential
from twistlm.sampling.target import Target

logger = logging.getLogger("twistlm")

# The name of the choice.
AUTO = "auto"
# Dense labels, of a pool that begins with the collected draws: settings like those of docs/dense.md.
DENSE: dict[str, Any] = {
    "method": "dpg",
    "target_source": "dense",
    "pool_start": "collected",
    "num_particles": 32,
    "num_updates": 192,
    "learning_rate": 3e-3,
    "weight_decay": 0.01,
    "num_labels": 150_000,
}
# New tokens beyond which labels would be spread over too few texts.
LONGEST = 64


def collected_draws_teach(potential: Potential) -> bool:
    """Whether draws that are collected are worth training on.

    They need a bound of φ. Under a hard constraint they know nothing of what is likely to come, and the proposal's own
    draws satisfy it, too.
    """
    return potential.log_upper_bound is not None and not constraints_in(potential)


def automatic(target: Target) -> dict[str, Any]:
    """Settings, as `RunConfig.changed` takes them, for a target; says which and why."""
    potential = target.potential
    if is_conditional(potential):
        logger.info("method auto: dpg on the proposal's draws, since φ differs by its condition")
        return {"method": "dpg", "target_source": "proposal"}
    if not scores_prefixes(potential):
        source = "draws" if collected_draws_teach(potential) else "pool"
        logger.info("method auto: gkl on %s, since φ says nothing of unfinished texts", source)
        return {"method": "gkl", "source": source}
    if target.num_tokens > LONGEST:
        logger.info("method auto: gkl on the pool, since texts of %d tokens are long to label", target.num_tokens)
        return {"method": "gkl", "source": "pool"}
    logger.info("method auto: dpg on dense labels, since φ can be asked about unfinished texts")
    return dict(DENSE)
