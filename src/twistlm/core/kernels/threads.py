"""How many threads a piece of work is worth.

Waking a second thread costs some 40 µs where idle threads sleep (`OMP_WAIT_POLICY=PASSIVE`). torch wakes it for every
elementwise operation on more than 32,768 numbers, which one core alone does in 10 µs: most of what a decoding step
spends between its products (RMSNorm of 100 × 576 in bfloat16: 305 µs with two threads, 35 with one). Within `alone`
everything runs on the calling thread but what is `together`. Outside, `together` changes nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_all: ContextVar[int] = ContextVar("threads that `alone` has put aside", default=0)


@contextmanager
def alone(when: bool = True) -> Iterator[None]:
    """One thread for what follows, `when` it is small enough."""
    count = torch.get_num_threads()
    if not when or count == 1 or _all.get():
        yield
        return
    token = _all.set(count)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)
        _all.reset(token)


@contextmanager
def together(when: bool = True) -> Iterator[None]:
    """All threads again, `when` what follows is large enough."""
    count = _all.get()
    if not when or not count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(1)
