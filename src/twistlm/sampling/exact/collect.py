"""Exact samples of the target, by rejection or by construction.

A base draw s ~ p₀ is accepted with probability φ(s) / sup φ, which makes accepted draws exact samples of σ. The draws
that were refused are kept too: weighted by φ they are training data that has been paid for.

Under a hard constraint draws come from what earlier ones have not ruled out of p₀ (`exact.ruled_out`), with a chance of
being accepted to match.

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
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from twistlm.core.errors import ConfigError, NoneAcceptedError, TwistError, UpperBoundError
from twistlm.core.progress import bar
from twistlm.core.rng import Rng
from twistlm.core.signals import Terminated
from twistlm.core.sizes import TOKEN_BYTES, check_sizes
from twistlm.core.work import HERE, Engine
from twistlm.potentials.conditions import conditioned, num_following
from twistlm.potentials.protocol import Potential
from twistlm.sampling.cases import Case, Cases
from twistlm.sampling.exact.budget import WAVE, Budget, Chunk, Counts, Plan
from twistlm.sampling.exact.collection import Collection
from twistlm.sampling.exact.file import Stream, accepts
from twistlm.sampling.exact.ruled_out import Learner, next_look
from twistlm.sampling.explored import Explored
from twistlm.sampling.proposals import twist_induced
from twistlm.sampling.sampler import Sampler, WorkerContext
from twistlm.sampling.samples import Samples
from twistlm.sampling.smc import NOTHING, Keep

# Between saves of a collection in progress: a kill costs no more than that, and files with features are large.
SAVE_SECONDS = 15.0


@dataclass(frozen=True)
class DrawChunk:
    """A piece of work: the draws of one chunk. What comes back says which that was."""

    rng: Rng
    chunk: Chunk
    keep: Keep
    ruled_out: Explored | None = None

    def __call__(self, at: WorkerContext) -> "tuple[DrawChunk, Samples]":
        """Do it."""
        cases = [at.cases[r] for r in self.chunk.rows]
        return self, base_draws(self.rng, at.sampler, cases, self.chunk.each, self.keep, self.ruled_out)


def collect(
    rng: Rng,
    here: WorkerContext,
    budget: Budget,
    *,
    target: str,
    so_far: Collection | None = None,
    save_to: Path | None = None,
    keep: Keep = NOTHING,
    engine: Engine = HERE,
) -> Collection:
    """Draw from p₀ until the budget is spent.

    Chunk k of the draws uses the stream `rng.fork("collect", k)`, and what it is for depends on the draws before alone:
    continuing from `so_far` gives bit for bit what an uninterrupted call gives, by however many workers.

    Args:
        rng: source of randomness.
        here: the base model of its sampler is drawn from, and its φ needs a known upper bound; its twist is ignored.
            What is given at its cases comes with each draw, where targets differ by it.
        budget: how much to draw.
        target: fingerprint recorded with the samples.
        so_far: an earlier result to continue.
        save_to: file to write every `SAVE_SECONDS`, at the end, and when the process is told to end.
        keep: what is kept (and saved) of every token: features, so that a head trains on the draws without a second
            pass over them, and siblings.
        engine: who draws; its workers have such a context.

    Raises:
        ConfigError: there is no room for so many draws.
        UpperBoundError: φ has no known upper bound.
        NoneAcceptedError: nothing was accepted within the budget.
    """
    check_sizes(
        TOKEN_BYTES * here.sampler.num_steps,
        max_draws=budget.max_draws,
        chunk=budget.chunk,
        **({} if budget.num_samples is None else {"num_samples": budget.num_samples}),
    )
    there = _InProgress(here, budget, target, so_far, save_to)
    with bar("exact samples", there.total) as report, there.kept():
        while not there.is_complete:
            for made in engine.do(there.wave(rng, keep), here):
                there.take(*made)
                report(*there.said)
                if there.is_complete:
                    break
            there.end_wave()
    return there.whole()


class _InProgress:
    """What has been drawn of a collection, and what is to be drawn next."""

    def __init__(
        self, here: WorkerContext, budget: Budget, target: str, so_far: Collection | None, save_to: Path | None
    ) -> None:
        self._here, self._budget, self._target = here, budget, target
        self._bound = bound_of(here.sampler.potential)
        self._parts = [] if so_far is None else [so_far]
        self._counts, self._plan = Counts.of(here.cases, so_far), Plan.of(budget, len(here.cases))
        self._before = self._counts if so_far is None else self._plan.before(here.cases, so_far, self._number)
        is_constrained = here.sampler.model.constraint is not None
        self._learner = Learner(here.sampler, here.cases, self._bound, so_far) if is_constrained else None
        self._save_to, self._saved_at = save_to, time.monotonic()

    @property
    def total(self) -> int:
        """How many samples are wanted, or draws if nobody said how many."""
        return (self._budget.num_samples or 0) * len(self._here.cases) or self._budget.max_draws

    @property
    def said(self) -> tuple[int, str]:
        """How many of the total are there, and how many were accepted."""
        num_draws, accepted = self._counts.num_draws, self._counts.num_accepted
        wanted = self._budget.num_samples
        there = sum(min(int(each), wanted) for each in self._counts.accepted) if wanted else num_draws
        return there, f"accepted {accepted} of {num_draws} ({accepted / num_draws:.2%})"

    @property
    def is_complete(self) -> bool:
        """Whether the budget is spent."""
        return self._budget.is_spent(self._counts)

    @property
    def _number(self) -> int:
        """Of the next chunk."""
        return sum(len(part.streams) for part in self._parts)

    def wave(self, rng: Rng, keep: Keep) -> Iterator[DrawChunk]:
        """The next chunks, which do not depend on one another."""
        number, ruled_out = self._number, None
        chunks = self._plan.wave(self._before, number)
        if self._learner is not None:
            ruled_out = self._learner.at(number)
            chunks = islice(chunks, next_look(number) - number)
        return (DrawChunk(rng.fork("collect", k), chunk, keep, ruled_out) for k, chunk in enumerate(chunks, number))

    def take(self, piece: DrawChunk, draws: Samples) -> None:
        """A chunk that was drawn."""
        part = _judged(piece, draws, self._here, self._bound, self._target)
        self._parts.append(part)
        if self._learner is not None:
            self._learner.chunks.append(part.draws.bare())
        self._counts = self._counts.plus(part, self._here.cases)
        if self._save_to is not None and time.monotonic() - self._saved_at > SAVE_SECONDS:
            self._parts = [_joined(self._parts)]
            self._parts[0].save(self._save_to)
            self._saved_at = time.monotonic()

    def end_wave(self) -> None:
        """What is ruled out may be looked at within a wave, which goes on by the plan that it began with."""
        if len(self._here.cases) == 1 or self._number % WAVE == 0:
            self._before = self._counts

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Save the chunks that are there if the process is told to end meanwhile, or one cannot be drawn."""
        try:
            yield
        except (KeyboardInterrupt, Terminated, TwistError):
            if self._save_to is not None and self._parts:
                _joined(self._parts).save(self._save_to)
            raise

    def whole(self) -> Collection:
        """All of it, saved.

        Raises:
            NoneAcceptedError: nothing was accepted.
        """
        collection = _joined(self._parts)
        if self._learner is not None:
            collection = replace(collection, log_uppers=self._learner.uppers())
        if self._save_to is not None:
            collection.save(self._save_to)
        if not collection.accepted.any():
            n = len(collection.draws)
            raise NoneAcceptedError(
                f"none of {n} draws was accepted: the acceptance rate is below {3 / n:.1e} with 95 % confidence "
                f"(log Z < {math.log(3 / n) + self._bound:.1f}); raise max_draws, or do without exact samples (lower "
                "bounds only)",
                collection,
            )
        return collection


def _judged(piece: DrawChunk, draws: Samples, here: WorkerContext, bound: float, target: str) -> Collection:
    """A chunk's draws and which of them are accepted."""
    # Sequences of one prompt share its tensor, which those from elsewhere do not.
    prompts = [here.cases[r].prompt for r in piece.chunk.rows for _ in range(piece.chunk.each)]
    draws = replace(draws, prompts=prompts)
    source = Stream(piece.rng.seed, piece.rng.path, len(draws))
    # With a condition of its own, every draw is exact by construction.
    uniforms = source.uniforms() if draws.conditions is None else None
    most = None
    if piece.ruled_out is not None:
        by_case = [piece.ruled_out.log_value(here.cases[r].prompt) for r in piece.chunk.rows]
        most = torch.tensor(by_case, dtype=torch.float64).repeat_interleave(piece.chunk.each)
    made_of = Collection(draws, torch.zeros(len(draws), dtype=torch.bool), bound, target, (source,), uniforms, most)
    return replace(made_of, accepted=accepts(made_of.log_shares, uniforms))


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


def base_draws(
    rng: Rng, sampler: Sampler, cases: Cases, count: int, keep: Keep = NOTHING, ruled_out: Explored | None = None
) -> Samples:
    """`count` base draws of each case's prompt with φ; under a constraint, draws of what is not `ruled_out`.

    Where targets differ by a condition, each is an exact sample of the one it defines.

    For infilling the condition is what the model wrote next.

    Raises:
        ConfigError: the model ends sequences at EOS, after which nothing can follow.
    """
    potential, num_steps = sampler.potential, sampler.num_steps
    assert potential is not None
    following = num_following(potential)
    if sampler.model.absorbing is not None and following > 0:
        raise ConfigError("infilling needs sequences of a fixed length: set eos='ignore' (--eos ignore)")
    free = replace(sampler.base, potential=None, num_steps=num_steps + following)
    if ruled_out is not None:
        free = replace(free, model=free.model.constrained(ruled_out.twist), proposal=twist_induced)
        # Siblings are those of p₀.
        keep = Keep(keep.features)
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


def _joined(parts: Sequence[Collection]) -> Collection:
    if len(parts) == 1:
        return parts[0]
    return replace(
        parts[0],
        draws=Samples.concatenate([part.draws for part in parts]),
        accepted=torch.cat([part.accepted for part in parts]),
        streams=tuple(stream for part in parts for stream in part.streams),
        uniforms=_cat([part.uniforms for part in parts]),
        log_most=_cat([part.log_most for part in parts]),
    )


def _cat(parts: Sequence[Tensor | None]) -> Tensor | None:
    """All of them, or none."""
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there else None
