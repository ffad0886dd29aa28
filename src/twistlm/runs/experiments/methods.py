"""The methods that are compared, and their order."""

from collections.abc import Sequence

# The paper's six in its order, then ours: what "all" means, and the order of tables and pictures.
METHODS = ("ctl", "rl", "sixo", "fudge", "dpg", "ppo", "gkl")


def in_order(methods: Sequence[str]) -> list[str]:
    """The methods, each once: the known ones in their order, then others as they come."""
    unique = list(dict.fromkeys(methods))
    return sorted(unique, key=lambda method: METHODS.index(method) if method in METHODS else len(METHODS))
