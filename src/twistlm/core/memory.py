"""Out of memory in one piece: go on with smaller ones.

Only for what gives the same in pieces: rows that know nothing of each other, and no randomness. A batch that is drawn
anew because it did not fit would be biased towards those that do.
"""

import logging
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from twistlm.core.advice import coded

logger = logging.getLogger("twistlm")

MEMORY_ERRORS: tuple[type[Exception], ...] = (MemoryError, RuntimeError)
"""What may be a want of memory; `is_out_of_memory` says whether it is."""

# torch has no class of its own for the CPU.
_SAID = ("can't allocate memory", "not enough memory", "bad_alloc", "could not create a memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is memory that was lacking, on any device."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)


def in_pieces(run: Callable[[slice], Tensor], count: int, doing: str) -> Tensor:
    """`run` on all of `count` rows at once, or on halves, quarters, … where memory does not suffice; in order.

    Args:
        run: what is computed of a slice of the rows, one entry for each.
        count: rows.
        doing: what it does, for the warning that is given once.
    """
    parts = _pieces(run, 0, count, doing)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _pieces(run: Callable[[slice], Tensor], start: int, stop: int, doing: str) -> list[Tensor]:
    try:
        return [run(slice(start, stop))]
    except MEMORY_ERRORS as error:
        if stop - start < 2 or not is_out_of_memory(error):
            raise
    # Out here the error no longer holds on to what had been allocated.
    say_smaller(doing)
    middle = (start + stop) // 2
    return _pieces(run, start, middle, doing) + _pieces(run, middle, stop, doing)


@lru_cache
def say_smaller(doing: str) -> None:
    """Warn that there was too little memory; once for each thing that was being done."""
    logger.warning(coded("TW504", "out of memory while %s: going on in smaller pieces, which takes longer"), doing)
