"""A pool of all draws made so far, each weighted as a draw from the mixture of the proposals that made them.

Every generation draws equally often for every prompt of a set, so that the mixture of each prompt has the same shares.

Multiple importance sampling with the balance heuristic (Veach and Guibas, 1995): with n_j of n draws from q_j, the
density of a draw is q̄ = Σ_j (n_j / n) q_j whichever of them it came from, and p₀/q̄ stays bounded as long as one q_j is
near p₀. So draws from early, bad proposals go on teaching beside those from later, better ones.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from twistlm.core.errors import ConfigError
from twistlm.core.logmath import normalise, truncated
from twistlm.core.rng import Rng
from twistlm.core.work import HERE, Engine
from twistlm.sampling.cases import Cases, rows_of
from twistlm.sampling.resampling import invert, stratified_points
from twistlm.sampling.sampler import Sampler, WorkerContext, in_parts
from twistlm.sampling.samples import Samples
from twistlm.sampling.smc import NOTHING, Keep
from twistlm.sampling.switching import Switching

# By default the pool grows at update 0, 16, 64, 256, …: every draw has to be weighed under every earlier proposal, and
# every earlier draw under the new one.
FIRST, FACTOR = 16, 4
# Sequences drawn at a time.
BATCH = 2048
# Sequences whose densities are taken at a time.
CHUNK = 4096
# One draw has no more than a part in so many of the weight towards σ.
PARTS = 16.0
# What is kept of every draw.
DRAWN = ("tokens", "mask", "log_p", "log_q", "log_phi")


def growths(first: int = FIRST) -> Iterator[int]:
    """The updates at which the pool grows, without end; `first`: after the start."""
    yield 0
    update = first
    while True:
        yield update
        update *= FACTOR


def updates_until_growth(update: int, first: int = FIRST) -> int | None:
    """If the pool grows at `update`, after how many more it grows again; None if it does not."""
    at, following = next(pair for pair in pairwise(growths(first)) if pair[0] >= update)
    return following - at if at == update else None


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A copy of everything that `load_state_dict` brings back."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


@dataclass(frozen=True)
class Pool:
    """n draws of G generations, in the order in which they came.

    Attributes:
        twists: parameters of each generation's twist.
        counts: how many draws each made, those that were not kept included, over all prompts.
        samples: all draws that were kept.
        log_q: log q_j(s_1:t) of every draw under every generation [G, n, T], float64.
        unsteered: which draws are the base model's own, the twist having been off throughout [n].
        switching: how the twists are switched on and off, if they are; then q_j is the mixture of all patterns.
    """

    twists: tuple[dict[str, Tensor], ...]
    counts: tuple[int, ...]
    samples: Samples
    log_q: Tensor
    unsteered: Tensor
    switching: Switching | None = None

    @staticmethod
    def begun(
        rng: Rng,
        sampler: Sampler,
        cases: Cases,
        count: int,
        switching: Switching | None = None,
        done: Callable[[int], None] | None = None,
        engine: Engine = HERE,
    ) -> "Pool":
        """`count` draws from the sampler's proposal as it is, an equal part of them for each case.

        `done` is told how many there are so far. `engine` draws them; its workers have such a sampler and these cases.
        """
        samples, unsteered = _drawn(rng.fork("pool", 0), sampler, cases, count, switching, done, engine)
        log_q = _log_q(sampler, samples, switching, own=True).unsqueeze(0)
        return Pool((snapshot(_module(sampler)),), (len(samples),), samples, log_q, unsteered, switching)

    def grown(
        self,
        rng: Rng,
        sampler: Sampler,
        cases: Cases,
        count: int,
        least: float | Tensor = -torch.inf,
        done: Callable[[int], None] | None = None,
        engine: Engine = HERE,
    ) -> "Pool":
        """With `count` draws more from the sampler's proposal, whose twist is left as it is; of the same cases.

        Those with log φ below `least`, of all or of each case [R], are counted and not kept: nothing has to be worked
        out for them again. `done` and `engine` as for `begun`.
        """
        module = _module(sampler)
        now = snapshot(module)
        fresh, unsteered = _drawn(
            rng.fork("pool", sum(self.counts)), sampler, cases, count, self.switching, done, engine
        )
        count = len(fresh)
        enough = torch.as_tensor(least).to(fresh.log_phi).expand(len(cases)).repeat_interleave(count // len(cases))
        kept = (fresh.log_phi >= enough).nonzero().squeeze(-1)
        fresh, rows = fresh.select(kept), []
        for twist in self.twists:
            module.load_state_dict(twist)
            rows.append(_log_q(sampler, fresh, self.switching))
        module.load_state_dict(now)
        rows.append(_log_q(sampler, fresh, self.switching, own=True))
        before = torch.cat([self.log_q, _log_q(sampler, self.samples, self.switching).unsqueeze(0)])
        return replace(
            self,
            twists=(*self.twists, now),
            counts=(*self.counts, count),
            samples=Samples.concatenate([self.samples, fresh]),
            log_q=torch.cat([before, torch.stack(rows)], 1),
            unsteered=torch.cat([self.unsteered, unsteered[kept]]),
        )

    def draw(self, rng: Rng, cases: Cases, count: int) -> tuple[Samples, Tensor]:
        """`count` random draws of each case, one case after the other, and log p₀(s_1:t) − log q̄(s_1:t) [R·count, T].

        Half of them is drawn evenly and half by the weight towards σ, and the ratios make up for that: the few draws
        that σ would make are seen often, and no ratio more than doubles.

        They are of the pool as `truncated` leaves it: of a target that it has next to nothing of, what comes near is
        learned, and not one text by heart.
        """
        samples, ratio = self.truncated(cases, PARTS).samples, self.final_log_ratio
        log_w = (ratio + samples.log_phi).expand(len(cases), -1)
        mine = torch.zeros_like(log_w, dtype=torch.bool)
        for row, index in zip(mine, rows_of(samples.prompts, cases), strict=True):
            row[index] = True
        evenly = mine.double() / mine.sum(1, keepdim=True)
        weights = normalise(log_w.masked_fill(~mine, -torch.inf))
        chance = torch.where(weights.sum(1, keepdim=True) > 0, (evenly + weights) / 2, evenly)
        index = invert(chance, stratified_points(rng, len(cases), count))
        chosen = index.flatten()
        log_ratio = self.select(chosen).log_ratio + (evenly / chance).log().gather(1, index).view(-1, 1)
        return samples.select(chosen), log_ratio

    def truncated(self, cases: Cases, parts: float) -> "Pool":
        """The same with no draw of more than one part in `parts` of the weight towards σ, over all cases.

        log φ is lowered of those that have more.
        """
        ratio, log_phi = self.final_log_ratio, self.samples.log_phi.clone()
        for index in rows_of(self.samples.prompts, cases):
            log_w = ratio[index] + log_phi[index]
            lower = truncated(log_w, parts / len(cases))
            log_phi[index] = torch.where(lower < log_w, lower - ratio[index], log_phi[index])
        return replace(self, samples=replace(self.samples, log_phi=log_phi))

    def select(self, index: Tensor) -> "Pool":
        """The draws at `index`, still weighed against all generations as they were."""
        return replace(
            self, samples=self.samples.select(index), log_q=self.log_q[:, index], unsteered=self.unsteered[index]
        )

    def tensors(self, cases: Cases) -> dict[str, Tensor]:
        """What `restored` reads, besides what it is told."""
        owner = torch.zeros(len(self.samples), dtype=torch.int64)
        for number, index in enumerate(rows_of(self.samples.prompts, cases)):
            owner[index] = number
        drawn = {f"drawn.{name}": getattr(self.samples, name) for name in DRAWN}
        features = {} if self.samples.features is None else {"drawn.features": self.samples.features}
        twists = {f"{g}.{name}": tensor for g, twist in enumerate(self.twists) for name, tensor in twist.items()}
        return {**drawn, **features, **twists, "owner": owner, "log_q": self.log_q, "unsteered": self.unsteered}

    @staticmethod
    def restored(
        tensors: Mapping[str, Tensor], cases: Cases, counts: Sequence[int], switching: Switching | None
    ) -> "Pool":
        """The pool whose `tensors` these are, with its `counts` and `switching`."""
        drawn: dict[str, Any] = {name: tensors[f"drawn.{name}"] for name in DRAWN}
        prompts = [cases[number].prompt for number in tensors["owner"].tolist()]
        twists = [
            {name.removeprefix(f"{g}."): each for name, each in tensors.items() if name.startswith(f"{g}.")}
            for g in range(len(counts))
        ]
        samples = Samples(prompts, **drawn, features=tensors.get("drawn.features"))
        return Pool(tuple(twists), tuple(counts), samples, tensors["log_q"], tensors["unsteered"], switching)

    @property
    def log_ratio(self) -> Tensor:
        """log p₀(s_1:t) − log q̄(s_1:t) of every draw [n, T]."""
        return self._log_ratio(slice(None))

    @cached_property
    def final_log_ratio(self) -> Tensor:
        """The same of whole sequences [n]."""
        return self._log_ratio(slice(-1, None))[:, 0]

    def _log_ratio(self, steps: slice) -> Tensor:
        shares = torch.tensor(self.counts, dtype=torch.float64, device=self.log_q.device) / sum(self.counts)
        mixture = torch.logsumexp(self.log_q[:, :, steps] + shares.log().view(-1, 1, 1), 0)
        return self.samples.log_p.cumsum(-1)[:, steps] - mixture


def _module(sampler: Sampler) -> nn.Module:
    """Of the twist.

    Raises:
        ConfigError: there is none.
    """
    if sampler.model.twist is None:
        raise ConfigError("a pool is made of draws with a twist; build the model with one")
    return sampler.model.twist.module


def _drawn(
    rng: Rng,
    sampler: Sampler,
    cases: Cases,
    count: int,
    switching: Switching | None,
    done: Callable[[int], None] | None,
    engine: Engine,
) -> tuple[Samples, Tensor]:
    """Fresh draws, and which of them the twist had no part in."""
    each, paused = max(1, count // len(cases)), None
    if switching is not None:
        paused = switching.draw(rng.fork("switching"), each * len(cases), sampler.num_steps)
        paused = paused.unflatten(0, (len(cases), each))
    keep = Keep(features=sampler.model.features_are_reusable)
    how: dict[str, Any] = {"keep": keep, "paused": paused, "batch": BATCH, "done": done}
    samples = draw(engine, rng, WorkerContext(sampler, cases), each, **how)
    unsteered = torch.zeros(len(samples), dtype=torch.bool) if paused is None else paused.all(-1).flatten()
    return samples, unsteered.to(samples.tokens.device)


@dataclass(frozen=True)
class DrawPart:
    """A piece of work: draws of some cases with the twist as it is now. Arguments as for `Sampler.draw_at_once`."""

    rng: Rng
    rows: slice
    count: int
    keep: Keep
    paused: Tensor | None
    twist: Mapping[str, Tensor]

    def __call__(self, at: WorkerContext) -> Samples:
        """Do it."""
        at.module.load_state_dict(self.twist)
        return at.sampler.draw_at_once(self.rng, at.cases[self.rows], self.count, keep=self.keep, paused=self.paused)


def draw(
    engine: Engine,
    rng: Rng,
    here: WorkerContext,
    num_samples: int,
    *,
    keep: Keep = NOTHING,
    paused: Tensor | None = None,
    batch: int,
    done: Callable[[int], None] | None = None,
) -> Samples:
    """What `here.sampler.draw` gives for all of its cases, drawn by an engine whose workers have such a context."""
    if not engine.has_workers:
        return here.sampler.draw(rng, here.cases, num_samples, keep=keep, paused=paused, batch=batch, done=done)
    now = here.module.state_dict()
    pieces, cases = [], here.cases
    for at, rows, columns in in_parts(len(cases), num_samples, batch):
        resting = None if paused is None else paused[rows, columns]
        pieces.append(DrawPart(rng.fork("proposal", at), rows, columns.stop - columns.start, keep, resting, now))
    parts: list[Samples] = []
    for part in engine.do(pieces, here):
        parts.append(part)
        if done is not None:
            done(sum(map(len, parts)))
    # Sequences of one prompt share its tensor, which those from elsewhere do not.
    prompts = [case.prompt for case in cases for _ in range(num_samples)]
    return replace(Samples.concatenate(parts), prompts=prompts)


def _log_q(sampler: Sampler, samples: Samples, switching: Switching | None, own: bool = False) -> Tensor:
    """log q_j(s_1:t) of given sequences [n, T] for the sampler's twist as it is; `own`: they were drawn by it."""
    if (own and switching is None) or len(samples) == 0:
        return samples.log_q.cumsum(-1)
    parts = []
    for at in range(0, len(samples), CHUNK):
        asked = sampler.densities(samples.select(torch.arange(at, min(at + CHUNK, len(samples)))))
        parts.append(asked.log_q.cumsum(-1) if switching is None else switching.log_q(asked.log_p, asked.log_q))
    return torch.cat(parts)
