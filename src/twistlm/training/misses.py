"""Updates of which every draw misses the target: they teach nothing, and are passed over while there is hope."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from twistlm.core.errors import TrainingError
from twistlm.training.sources import Batch

# Updates in a row after which there is none. Of batches of fifty draws, one in a thousand of which hits, so many miss
# in a row with a chance of one in twenty-five.
MOST = 64


def misses(batches: Mapping[str, Batch]) -> bool:
    """Whether the target's batch is there and has no sequence of φ > 0. Values of prefixes are no draws of φ."""
    batch = batches.get("target")
    return batch is not None and batch.values is None and not bool(batch.log_w.isfinite().any())


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
