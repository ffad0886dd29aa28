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
from twistlm.core.work import Alone, in_order
from twistlm.potentials.conditions import conditioned, num_following
from twistlm.potentials.protocol import Potential
from twistlm.sampling.cases import Case, Cases
from twistlm.sampling.exact.budget import WAVE, Budget, Chunk, Counts, Plan
from twistlm.sampling.exact.collection import Collection
from twistlm.sampling.exact.file import Stream, accepts
from twistlm.sampling.exact.ruled_out import Learner, next_look
from twistlm.sampling.explored import Explored
from twistlm.sampling.proposals import twist_induced
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.samples import Samples
from twistlm.sampling.smc import NOTHING, Keep
from twistlm.sampling.workplace import Workers, Workplace

# Between saves of a collection in progress: a kill costs no more than that, and files with features are large.
SAVE_SECONDS = 15.0


@dataclass(frozen=True)
class DrawChunk:
    """A piece of work: the draws of one chunk. What comes back says which that was."""

    rng: Rng
    chunk: Chunk
    keep: Keep
    ruled_out: Explored | None = None

    def __call__(self, at: Workplace) -> "tuple[DrawChunk, Samples]":
        """Do it."""
        cases = [at.cases[r] for r in self.chunk.rows]
        return self, base_draws(self.rng, at.sampler, cases, self.chunk.each, self.keep, self.ruled_out)


def collect(
    rng: Rng,
    here: Workplace,
    budget: Budget,
    *,
    target: str,
    so_far: Collection | None = None,
    save_to: Path | None = None,
    keep: Keep = NOTHING,
    team: Workers | None = None,
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
        team: who draws, at workplaces like this one; None draws here.

    Raises:
        ConfigError: there is no room for so many draws.
        UpperBoundError: φ has no known upper bound.
        NoneAcceptedError: nothing was accepted within the budget.
    """
    sampler, cases = here.sampler, here.cases
    bound = bound_of(sampler.potential)
    sizes = {"max_draws": budget.max_draws, "chunk": budget.chunk}
    sizes |= {} if budget.num_samples is None else {"num_samples": budget.num_samples}
    check_sizes(TOKEN_BYTES * sampler.num_steps, **sizes)
    parts = [] if so_far is None else [so_far]
    saved_at, counts = time.monotonic(), Counts.of(cases, so_far)
    plan = Plan.of(budget, len(cases))
    before = counts if so_far is None else plan.before(cases, so_far, len(so_far.streams))
    learner = None if sampler.model.constraint is None else Learner(sampler, cases, bound, so_far)
    with (
        bar("exact samples", (budget.num_samples or 0) * len(cases) or budget.max_draws) as report,
        _kept(parts, save_to),
    ):
        while not budget.is_spent(counts):
            number = sum(len(part.streams) for part in parts)
            wave, ruled_out = plan.wave(before, number), None
            if learner is not None:
                ruled_out = learner.at(number)
                wave = islice(wave, next_look(number) - number)
            pieces = (DrawChunk(rng.fork("collect", k), chunk, keep, ruled_out) for k, chunk in enumerate(wave, number))
            for made in in_order(team or Alone(here), pieces):
                parts.append(_judged(made, here, bound, target))
                if learner is not None:
                    learner.chunks.append(parts[-1].draws.bare())
                counts = counts.plus(parts[-1], cases)
                if save_to is not None and time.monotonic() - saved_at > SAVE_SECONDS:
                    parts[:] = [_joined(parts)]
                    parts[0].save(save_to)
                    saved_at = time.monotonic()
                n, hits = counts.num_draws, counts.num_accepted
                enough = sum(min(int(accepted), budget.num_samples or 0) for accepted in counts.accepted)
                report(enough if budget.num_samples else n, f"accepted {hits} of {n} ({hits / n:.2%})")
                if budget.is_spent(counts):
                    break
            # What is ruled out may be looked at within a wave, which goes on by the plan that it began with.
            if len(cases) == 1 or sum(len(part.streams) for part in parts) % WAVE == 0:
                before = counts
    collection = _joined(parts)
    if learner is not None:
        collection = replace(collection, log_uppers=learner.uppers())
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


def _judged(made: tuple[DrawChunk, Samples], here: Workplace, bound: float, target: str) -> Collection:
    """A chunk's draws and which of them are accepted."""
    piece, draws = made
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
        raise ConfigError("infilling needs sequences of a fixed length: set eos='ignore'")
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


@contextmanager
def _kept(parts: list[Collection], path: Path | None) -> Iterator[None]:
    """Save the chunks that are there if the process is told to end meanwhile, or one cannot be drawn."""
    try:
        yield
    except (KeyboardInterrupt, Terminated, TwistError):
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
        uniforms=_cat([part.uniforms for part in parts]),
        log_most=_cat([part.log_most for part in parts]),
    )


def _cat(parts: Sequence[Tensor | None]) -> Tensor | None:
    """All of them, or none."""
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there else None
