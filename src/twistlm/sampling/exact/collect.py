"""Exact samples of the target, by rejection or by construction.

A base draw s ~ p₀ is accepted with probability φ(s) / sup φ, which makes accepted draws exact samples of σ. The draws
that were refused are kept too: weighted by φ they are training data that has been paid for.

Of a set of prompts each chunk of draws is shared by several: by all in turn until half of the budget is spent, then by
those that lack exact samples most.

Where the target differs by what must follow (infilling), every base draw of T + c tokens holds an exact sample of the
target that its last c tokens are the condition of, and all are accepted.

Upper bounds on log Z and KL(σ‖q) are void with approximate samples, so `ExactSamples` can be made only by
`Collection.exact`, which checks acceptance again. What is compared with φ / sup φ comes from a stream of its own for
every chunk of draws, and the file names the streams, so that reading it checks the same (`exact.file`).
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from twistlm.core.errors import ConfigError, NoneAcceptedError, UpperBoundError
from twistlm.core.progress import bar
from twistlm.core.rng import Rng
from twistlm.core.signals import STOPS
from twistlm.core.sizes import TOKEN_BYTES, check_sizes
from twistlm.potentials.conditions import conditioned, num_following
from twistlm.potentials.protocol import Potential
from twistlm.sampling.cases import Case, Cases, rows_of
from twistlm.sampling.exact.collection import Collection
from twistlm.sampling.exact.file import Stream, accepts
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.samples import Samples
from twistlm.sampling.smc import NOTHING, Keep

# Draws of one prompt at a time, where there are several.
EACH = 16
# No prompt gets more than so many times an even share of the draws: one whose φ is never met must not take them all.
MOST_SHARES = 4
# Between saves of a collection in progress: a kill costs no more than that, and files with features are large.
SAVE_SECONDS = 15.0


@dataclass(frozen=True)
class Budget:
    """How much to draw.

    Attributes:
        max_draws: at most so many, rounded up to whole chunks.
        num_samples: stop once so many are accepted of every prompt; None draws `max_draws` in any case.
        chunk: sequences drawn at a time.
    """

    max_draws: int
    num_samples: int | None = None
    chunk: int = 512

    def is_spent(self, counts: "Counts") -> bool:
        """Whether so much is enough."""
        return counts.num_draws >= self.max_draws or self.has_enough(min(counts.accepted))

    def has_enough(self, accepted: int) -> bool:
        """Whether a prompt needs no more exact samples than that."""
        return self.num_samples is not None and accepted >= self.num_samples


@dataclass(frozen=True)
class Counts:
    """What has been drawn so far: draws and accepted ones of each case."""

    drawn: tuple[int, ...]
    accepted: tuple[int, ...]

    def plus(self, part: Collection, cases: Cases) -> "Counts":
        """With a further part of a collection of these cases."""
        rows = rows_of(part.draws.prompts, cases)
        return Counts(
            tuple(count + len(index) for count, index in zip(self.drawn, rows, strict=True)),
            tuple(count + int(part.accepted[index].sum()) for count, index in zip(self.accepted, rows, strict=True)),
        )

    @staticmethod
    def of(cases: Cases, whole: Collection | None) -> "Counts":
        """Those of a collection; all 0 where there is none."""
        none = Counts((0,) * len(cases), (0,) * len(cases))
        return none if whole is None else none.plus(whole, cases)

    @property
    def num_draws(self) -> int:
        """Of all cases."""
        return sum(self.drawn)

    @property
    def num_accepted(self) -> int:
        """Of all cases."""
        return sum(self.accepted)

    def neediest(self, budget: Budget, size: int) -> list[int]:
        """The `size` cases that the next chunk is for."""
        even = budget.max_draws / len(self.drawn)

        def need(r: int) -> tuple[bool, bool, int, int]:
            drawn, accepted = self.drawn[r], self.accepted[r]
            behind = drawn < even / 2
            done = budget.has_enough(accepted) or drawn >= MOST_SHARES * even
            return not behind, done, drawn if behind else accepted, drawn

        return sorted(sorted(range(len(self.drawn)), key=need)[:size])


def collect(
    rng: Rng,
    sampler: Sampler,
    cases: Cases,
    budget: Budget,
    *,
    target: str,
    so_far: Collection | None = None,
    save_to: Path | None = None,
    keep: Keep = NOTHING,
) -> Collection:
    """Draw from p₀ until the budget is spent.

    Chunk k of the draws uses the stream `rng.fork("collect", k)`, so continuing from `so_far` gives bit for bit what an
    uninterrupted call gives.

    Args:
        rng: source of randomness.
        sampler: its base model is drawn from, and its φ needs a known upper bound; its twist is ignored.
        cases: the prompts; what is given there comes with each draw, where targets differ by it.
        budget: how much to draw.
        target: fingerprint recorded with the samples.
        so_far: an earlier result to continue.
        save_to: file to write every `SAVE_SECONDS`, at the end, and when the process is told to end.
        keep: what is kept (and saved) of every token: features, so that a head trains on the draws without a second
            pass over them, and siblings.

    Raises:
        ConfigError: there is no room for so many draws.
        UpperBoundError: φ has no known upper bound.
        NoneAcceptedError: nothing was accepted within the budget.
    """
    bound = bound_of(sampler.potential)
    sizes = {"max_draws": budget.max_draws, "chunk": budget.chunk}
    sizes |= {} if budget.num_samples is None else {"num_samples": budget.num_samples}
    check_sizes(TOKEN_BYTES * sampler.num_steps, **sizes)
    parts = [] if so_far is None else [so_far]
    saved_at, counts = time.monotonic(), Counts.of(cases, so_far)
    # Half of the cases at most, so that the needier half can be told from the other.
    turn = max(1, min(EACH, budget.max_draws // (2 * len(cases))))
    size = min((len(cases) + 1) // 2, max(1, budget.chunk // turn))
    each = budget.chunk // size
    if len(cases) > 1:
        # A budget that is smaller than two chunks must reach every prompt, too.
        each = max(1, min(each, budget.max_draws // (2 * len(cases))))
    total = (budget.num_samples or 0) * len(cases) or budget.max_draws
    with bar("exact samples", total) as report, _kept(parts, save_to):
        while not budget.is_spent(counts):
            stream = rng.fork("collect", sum(len(part.streams) for part in parts))
            source = Stream(stream.seed, stream.path, size * each)
            chosen = [cases[r] for r in counts.neediest(budget, size)]
            draws = base_draws(stream, sampler, chosen, each, keep)
            # With a condition of its own, every draw is exact by construction.
            uniforms = source.uniforms() if draws.conditions is None else None
            accepted = accepts(draws.log_phi, bound, uniforms)
            parts.append(Collection(draws, accepted, bound, target, (source,), uniforms))
            counts = counts.plus(parts[-1], cases)
            if save_to is not None and time.monotonic() - saved_at > SAVE_SECONDS:
                parts[:] = [_joined(parts)]
                parts[0].save(save_to)
                saved_at = time.monotonic()
            n, hits = counts.num_draws, counts.num_accepted
            enough = sum(min(accepted, budget.num_samples or 0) for accepted in counts.accepted)
            report(enough if budget.num_samples else n, f"accepted {hits} of {n} ({hits / n:.2%})")
    collection = _joined(parts)
    if save_to is not None:
        collection.save(save_to)
    if not collection.accepted.any():
        n = len(collection.draws)
        raise NoneAcceptedError(
            f"none of {n} draws was accepted: the acceptance rate is below {3 / n:.1e} with 95 % confidence "
            f"(log Z < {math.log(3 / n) + bound:.1f}); raise max_draws, or do without exact samples (lower bounds "
            "only)",
            collection,
        )
    return collection


def bound_of(potential: Potential | None) -> float:
    """log sup φ.

    Raises:
        UpperBoundError: it is not known.
    """
    bound = None if potential is None else potential.log_upper_bound
    if bound is None or not math.isfinite(bound):
        declared = f"{type(potential).__name__} declares {'none' if bound is None else bound}"
        raise UpperBoundError(
            f"rejection sampling needs an upper bound on the potential, and {declared}; set its log_upper_bound "
            "(0 for a probability), or do without exact samples (lower bounds only)"
        )
    return bound


def base_draws(rng: Rng, sampler: Sampler, cases: Cases, count: int, keep: Keep = NOTHING) -> Samples:
    """`count` base draws of each case's prompt with φ.

    Where targets differ by a condition, each is an exact sample of the one it defines.

    For infilling the condition is what the model wrote next.

    Raises:
        ConfigError: the model ends sequences at EOS, after which nothing can follow.
    """
    potential, num_steps = sampler.potential, sampler.num_steps
    assert potential is not None
    following = num_following(potential)
    if sampler.model.absorbing is not None and following > 0:
        raise ConfigError("infilling needs sequences of a fixed length: set eos='ignore'")
    free = replace(sampler.base, potential=None, num_steps=num_steps + following)
    # Siblings serve an expectation over many draws of one target.
    keep = Keep(keep.features) if sampler.is_conditional else keep
    whole = free.draw_at_once(rng, [Case(case.prompt) for case in cases], count, keep=keep)
    draws = whole.start(num_steps)
    conditions, log_phi = conditioned(
        potential,
        lambda: rng.uniform((1, len(draws)))[0].to(draws.tokens.device),
        draws.prompts,
        draws.tokens,
        whole.tokens[:, num_steps:],
        whole.log_p[:, num_steps:],
    )
    return replace(draws, log_phi=log_phi.to(draws.log_p.device), conditions=conditions)


@contextmanager
def _kept(parts: list[Collection], path: Path | None) -> Iterator[None]:
    """Save the chunks that are there if the process is told to end meanwhile."""
    try:
        yield
    except STOPS:
        if path is not None and parts:
            _joined(parts).save(path)
        raise


def _joined(parts: Sequence[Collection]) -> Collection:
    if len(parts) == 1:
        return parts[0]
    return replace(
        parts[0],
        draws=Samples.concatenate([part.draws for part in parts]),
        accepted=torch.cat([part.accepted for part in parts]),
        streams=tuple(stream for part in parts for stream in part.streams),
        uniforms=None
        if parts[0].uniforms is None
        else torch.cat([part.uniforms for part in parts if part.uniforms is not None]),
    )
