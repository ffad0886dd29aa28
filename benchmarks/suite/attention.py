"""How long attention takes within a run, by whichever function a model attends.

All attention of transformers, ours included, is looked up by name in one table; while a stopwatch runs, every function
in it is timed. On the CPU a function returns when it is done, and two calls of a clock per layer and token cost nothing
beside it. What is left of a run's time is everything apart from attention: growing and reordering the cache, too.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class Stopwatch:
    """Seconds and calls so far."""

    def __init__(self) -> None:
        self.seconds, self.calls = 0.0, 0
        self._within = False

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose time counts; the time of a timed function within another counts once."""

        def run(*args: Any, **options: Any) -> Any:
            if self._within:
                return function(*args, **options)
            self._within = True
            start = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.seconds += time.perf_counter() - start
                self.calls += 1
                self._within = False

        return run

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time all attention for a moment."""
        functions = {name: ALL_ATTENTION_FUNCTIONS[name] for name in ALL_ATTENTION_FUNCTIONS}
        for name, function in functions.items():
            ALL_ATTENTION_FUNCTIONS[name] = self.timed(function)
        try:
            yield
        finally:
            for name in functions:
                # What was set is an override of this table alone.
                del ALL_ATTENTION_FUNCTIONS[name]


def split(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds of `run` and of attention within it.

    Raises:
        RuntimeError: no attention was seen: it no longer goes through transformers' table.
    """
    watch = Stopwatch()
    with watch.running():
        start = time.perf_counter()
        run()
        total = time.perf_counter() - start
    if watch.calls == 0:
        raise RuntimeError(
            "no attention was seen: does the model still attend through transformers' AttentionInterface?"
        )
    return total, watch.seconds
