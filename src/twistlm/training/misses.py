"""Updates of which every draw misses the target, or all but one: those teach nothing, these next to nothing."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from twistlm.core.errors import TrainingError
from twistlm.training.sources import Batch

# Updates in a row after which there is none. Of batches of fifty draws, one in a thousand of which hits, so many miss
# in a row with a chance of one in twenty-five.
MOST = 64
# Updates in a row with next to no effective sequences before the collapse is announced.
COLLAPSE_UPDATES = 10


def misses(batches: Mapping[str, Batch]) -> bool:
    """Whether the target's batch is there and has no sequence of φ > 0."""
    batch = batches.get("target")
    return batch is not None and not bool(batch.log_w.isfinite().any())


def check_misses(history: Sequence[Mapping[str, Any]], num_updates: int) -> None:
    """Refuse to go on after a miss, if all updates or too many in a row have been one.

    Args:
        history: rows of kind "update" and "miss", and others.
        num_updates: of the whole training.

    Raises:
        TrainingError: there is no hope.
    """
    kinds = [row["kind"] for row in history if row["kind"] in ("update", "miss")]
    in_a_row = sum(1 for _ in takewhile(lambda kind: kind == "miss", reversed(kinds)))
    if in_a_row >= min(MOST, num_updates):
        raise TrainingError(
            f"in {in_a_row} updates in a row no sequence had φ > 0: the target is too rare to be learned like this. "
            "Soften φ (eps=1e-4, a lower threshold, a lower beta), draw more (num_particles), or look for the event "
            "with `twistlm probability`, which climbs to it"
        )


def collapse(num_particles: int, effective: float, kl_q_prior: float) -> str:
    """What to say after so many updates with few effective sequences; the last one's number, and its proposal's KL."""
    return (
        f"for {COLLAPSE_UPDATES} updates fewer than 2 of {num_particles} sequences carried the target's weight (ESS "
        f"{effective:.1f}, KL to the prior {kl_q_prior:.1f}): the twist learns from single samples. Use more "
        "particles, --source draws or exact, a milder potential, or a lower learning_rate"
    )
