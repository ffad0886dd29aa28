"""How fast this machine samples: the bundled model by itself, beside transformers' `generate`."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM

from twistlm.core.estimates import Estimate, difference, exactly, student
from twistlm.core.rng import Rng
from twistlm.models.bundled import folder
from twistlm.models.huggingface import load
from twistlm.models.packaged import without_progress_bars
from twistlm.sampling.cases import Case
from twistlm.sampling.proposals import base
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.twisted import TwistedLM

MODEL, PROMPT = "stories", "Once upon a time, there was a"
NUM_SEQUENCES, NUM_TOKENS = 100, 20
# Rounds of both, after a warm-up each: as many as fit, within these limits.
SECONDS, LEAST, MOST = 4.0, 5, 20


@dataclass(frozen=True)
class Speed:
    """Time of sampling, over rounds in which both took turns; geometric means with 95 % intervals.

    Attributes:
        model: what was sampled from.
        num_sequences, num_tokens: of a round: so many sequences of so many new tokens.
        num_threads: of torch.
        seconds: of a round.
        tokens_per_second: new tokens of all sequences together.
        ratio: to the seconds of transformers' `generate` for as many.
    """

    model: str
    num_sequences: int
    num_tokens: int
    num_threads: int
    seconds: Estimate
    tokens_per_second: Estimate
    ratio: Estimate

    @property
    def estimates(self) -> dict[str, Estimate]:
        """Those of its numbers that are estimates, by name."""
        return {"seconds": self.seconds, "tokens_per_second": self.tokens_per_second, "ratio": self.ratio}

    @staticmethod
    def here(report: Callable[[int], None]) -> "Speed":
        """Measured now, in a few seconds.

        Args:
            report: is told how many rounds are done, of `MOST`.
        """
        ours, theirs = _work()
        times: list[tuple[float, float]] = []
        ours(0)
        theirs()
        started = time.perf_counter()
        while len(times) < LEAST or (len(times) < MOST and time.perf_counter() - started < SECONDS):
            report(len(times))
            # Every other round in reverse, against drift.
            if len(times) % 2 == 0:
                mine, other = _timed(lambda: ours(len(times) + 1)), _timed(theirs)
            else:
                other, mine = _timed(theirs), _timed(lambda: ours(len(times) + 1))
            times.append((mine, other))
        log_seconds = student([math.log(mine) for mine, _ in times])
        tokens = NUM_SEQUENCES * NUM_TOKENS
        return Speed(
            f"the bundled model {MODEL}",
            NUM_SEQUENCES,
            NUM_TOKENS,
            torch.get_num_threads(),
            _exp(log_seconds),
            _exp(difference(exactly(math.log(tokens), log_seconds.n), log_seconds)),
            _exp(student([math.log(mine / other) for mine, other in times])),
        )


def _work() -> tuple[Callable[[int], object], Callable[[], object]]:
    """A round of ours, by its number, and one of `generate`."""
    lm = load(MODEL)
    with without_progress_bars():
        network = AutoModelForCausalLM.from_pretrained(folder(MODEL), dtype=lm.dtype)
    prompt = lm.encode(PROMPT)
    sampler = Sampler(TwistedLM(lm, None, "ignore"), None, NUM_TOKENS, proposal=base, ess_threshold=0.0)
    rows = prompt.expand(NUM_SEQUENCES, -1)
    how = {"do_sample": True, "top_k": 0, "use_cache": True, "pad_token_id": lm.eos_token_id}

    def ours(number: int) -> object:
        return sampler.smc(Rng(number, ("doctor",)), [Case(prompt)], NUM_SEQUENCES)

    def theirs() -> object:
        mask = torch.ones_like(rows)
        return network.generate(rows, attention_mask=mask, min_new_tokens=NUM_TOKENS, max_new_tokens=NUM_TOKENS, **how)

    return ours, theirs


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _exp(estimate: Estimate) -> Estimate:
    return Estimate(math.exp(estimate.value), math.exp(estimate.low), math.exp(estimate.high), estimate.n)
