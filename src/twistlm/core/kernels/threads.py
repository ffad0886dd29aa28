"""How many threads a piece of work is worth.

Waking a second thread costs some 40 µs where idle threads sleep (`OMP_WAIT_POLICY=PASSIVE`). torch wakes it for every
elementwise operation on more than 32,768 numbers, which one core alone does in 10 µs: most of what a decoding step
spends between its products (RMSNorm of 100 × 576 in bfloat16: 305 µs with two threads, 35 with one). Within `alone`
everything runs on the calling thread but what is `together`. Outside, `together` changes nothing.

Where there are several such pieces of work at hand, `side_by_side` gives each core one of them: a second core is then
worth a second core, for small operations, too. What may not be done by any thread, they have `asked` of the first one.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

R = TypeVar("R")
# Python itself runs on one core at a time, which between operations as small as these is an eighth of the time or so.
MOST = 8

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


def side_by_side(pieces: Iterable[Callable[[], R]], when: bool = True) -> Iterator[R]:
    """What each of the pieces gives, in order: several threads do them, `when` they can bear it, or else this one.

    Torch's threads are shared out among them. Pieces may read the same things, and write nothing that another reads.
    The caller's thread waits for the next result meanwhile, and does what it is `asked`.
    """
    waiting, count = list(pieces), torch.get_num_threads()
    workers = min(len(waiting), count, MOST)
    if not when or workers < 2:
        for piece in waiting:
            yield piece()
        return
    # Both are each thread's own.
    grad, share = torch.is_grad_enabled(), count // workers
    desk: SimpleQueue[_Question | None] = SimpleQueue()

    def do(piece: Callable[[], R]) -> R:
        with torch.set_grad_enabled(grad):
            _desk.set(desk)
            return piece()

    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,))
    futures = [pool.submit(do, piece) for piece in waiting]
    for future in futures:
        # Nobody waits at the desk for what has ended.
        future.add_done_callback(lambda _: desk.put(None))
    try:
        for future in futures:
            while not future.done():
                if (question := desk.get()) is not None:
                    question.answer()
            yield future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        while not all(future.done() for future in futures):
            if (question := desk.get()) is not None:
                question.refuse()
        pool.shutdown()
        # One of torch's libraries has a single number for all threads.
        torch.set_num_threads(count)


class _Question:
    """What a thread wants to be done by another one."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function, self.answered = function, Future[Any]()

    def answer(self) -> None:
        try:
            self.answered.set_result(self._function())
        except BaseException as error:
            self.answered.set_exception(error)
            # That this thread is to end is its own affair, too.
            if not isinstance(error, Exception):
                raise

    def refuse(self) -> None:
        self.answered.set_exception(RuntimeError("nobody waits for the result any more"))


_desk: ContextVar[SimpleQueue[_Question | None] | None] = ContextVar("where questions are put", default=None)


def asked(function: Callable[[], R]) -> R:
    """What the function gives, called by the thread that waits for what is done `side_by_side`; here if none does."""
    desk = _desk.get()
    if desk is None:
        return function()
    question = _Question(function)
    desk.put(question)
    answer: R = question.answered.result()
    return answer
