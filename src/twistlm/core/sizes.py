"""Numbers of things: at least so many, and no more than memory can hold, refused before anything is computed; parts."""

import math
from numbers import Integral

import psutil

from twistlm.core.errors import ConfigError

# Of each token that is drawn: its number, log p₀ and log q, eight bytes each.
TOKEN_BYTES = 24
# Of each sequence spent on a bound, of which one number is kept for several.
RUN_BYTES = 1
# Of each update in a run's history: a dictionary with a few numbers.
RECORD_BYTES = 512


def even(count: int, most: int) -> int:
    """Size of each of the fewest equal parts of `count` things, of at most `most` each; the last may be smaller."""
    parts = max(1, math.ceil(count / most))
    return max(1, math.ceil(count / parts))


def check_sizes(each: int, least: int = 1, **counts: int) -> None:
    """Refuse numbers of things that are too small, or whose least size is more than this machine's memory.

    Args:
        each: bytes of one, at the very least.
        least: the smallest number that makes sense.
        **counts: by the name of the setting that asks for them.

    Raises:
        ConfigError: a number is no whole number, is below `least`, or they cannot all be kept.
    """
    there = psutil.virtual_memory().total
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, Integral):
            raise ConfigError(f"{name} must be a whole number, not {count!r}")
        if count < least:
            raise ConfigError(f"{name} must be at least {least}, not {count}")
        if count * each > there:
            raise ConfigError(
                f"{name} = {_short(count)} would take {_gib(count * each)} GiB at the very least, and this machine has "
                f"{_gib(there)} GiB of memory; ask for fewer"
            )


def _short(count: int) -> str:
    return f"{count:,}" if count < 10**15 else f"10^{count.bit_length() * 30103 // 100000}"


def _gib(size: int) -> str:
    # A float has no room for the largest.
    return _short(size // 2**30) if size >= 2**40 else f"{size / 2**30:.1f}"
