"""Requests that wait, and the one worker that answers them, several in one batch of SMC."""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise

from torch import Tensor

from twistlm.core.advice import coded
from twistlm.core.errors import TwistError
from twistlm.core.rng import Rng
from twistlm.integrations.answers import Answer, answered
from twistlm.integrations.server.limits import Limits
from twistlm.runs.run import Run
from twistlm.sampling.sampler import Sampler

logger = logging.getLogger("twistlm")

# Particles of requests that are answered together, at most.
BATCH = 1024


class OverloadedError(Exception):
    """Too much waits already, or the server is going down."""


class _AbandonedError(Exception):
    """Nobody waits any more for what is being drawn."""


@dataclass(eq=False)
class _Request:
    prompts: Sequence[Tensor]
    num_particles: int
    seed: int | None
    answers: "asyncio.Future[list[Answer]]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def size(self) -> int:
        """Particles in all."""
        return self.num_particles * len(self.prompts)


class Desk:
    """Takes requests of one event loop, and answers them one batch at a time.

    Requests without a seed that wait at the same time and want as many particles are answered together. One with a
    seed is answered by itself, so that its answer does not depend on who else asks.

    Args:
        sampler: of the run.
        run: whose texts they are.
        limits: how much may wait.
        seed: of requests without one.
    """

    def __init__(self, run: Run, sampler: Sampler, limits: Limits, seed: int) -> None:
        self.run, self.sampler, self.limits = run, sampler, limits
        self.rng, self.batches = Rng(seed, ("serve",)), 0
        self._waiting: deque[_Request] = deque()
        self._news = asyncio.Event()
        self._closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="twistlm-serve")

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    async def ask(self, prompts: Sequence[Tensor], num_particles: int, seed: int | None) -> list[Answer]:
        """A sequence after each prompt, of a run of SMC with so many particles.

        Raises:
            OverloadedError: too much waits already.
            TimeoutError: it took too long.
            TwistError: there is no answer.
        """
        if self._closed or len(self._waiting) >= self.limits.most_waiting:
            raise OverloadedError
        request = _Request(prompts, num_particles, seed)
        self._waiting.append(request)
        self._news.set()
        try:
            # Cancels the future in the end, by which the worker knows that nobody waits for it.
            return await asyncio.wait_for(request.answers, self.limits.timeout)
        finally:
            with suppress(ValueError):
                self._waiting.remove(request)

    async def work(self) -> None:
        """Answer until the desk is closed and nothing waits any more."""
        loop = asyncio.get_running_loop()
        while not (self._closed and not self._waiting):
            if not self._waiting:
                self._news.clear()
                await self._news.wait()
                continue
            batch = self._batch()
            if batch:
                found = await loop.run_in_executor(self._thread, self._answered, batch)
                for request, answers in zip(batch, found, strict=True):
                    if request.answers.done():
                        continue
                    if isinstance(answers, Exception):
                        request.answers.set_exception(answers)
                    else:
                        request.answers.set_result(answers)
        self._thread.shutdown()

    def close(self) -> None:
        """Take no more; what waits is answered."""
        self._closed = True
        self._news.set()

    def _batch(self) -> list[_Request]:
        """The first that waits, and what can be answered with it."""
        waiting = [request for request in self._waiting if not request.answers.done()]
        batch = waiting[:1]
        for request in waiting[1:]:
            alike = request.num_particles == batch[0].num_particles and request.seed is batch[0].seed is None
            if alike and sum(each.size for each in (*batch, request)) <= BATCH:
                batch.append(request)
        self._waiting = deque(request for request in waiting if request not in batch)
        return batch

    def _answered(self, batch: list[_Request]) -> list[list[Answer] | Exception]:
        """In the worker's thread."""
        self.batches += 1
        try:
            answers = self._drawn(batch)
        except _AbandonedError as error:
            return [error] * len(batch)
        except TwistError as error:
            if len(batch) == 1:
                return [error]
            # One prompt at which every particle died must not be the others' error.
            return [each for request in batch for each in self._answered([request])]
        except Exception as error:
            logger.exception(coded("TW507", "a batch of %d requests failed"), len(batch))
            return [error] * len(batch)
        ends = [0]
        for request in batch:
            ends.append(ends[-1] + len(request.prompts))
        return [answers[start:end] for start, end in pairwise(ends)]

    def _drawn(self, batch: list[_Request]) -> list[Answer]:
        seed = batch[0].seed
        rng = self.rng.fork("batch", self.batches) if seed is None else Rng(seed, ("serve", "seed"))
        prompts = [prompt for request in batch for prompt in request.prompts]

        def check() -> None:
            if all(request.answers.done() for request in batch):
                raise _AbandonedError

        return answered(self.run, replace(self.sampler, at_step=check), rng, prompts, batch[0].num_particles)
