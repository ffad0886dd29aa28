"""Fresh draws for an estimate: of a proposal that they have taught nothing, and half of them the base model's own."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from twistlm.certificates.probability import spelled
from twistlm.core.progress import bar
from twistlm.core.rng import Rng
from twistlm.core.storage import load_tensors, save_tensors
from twistlm.core.work import HERE, Engine
from twistlm.sampling.mixture import Pool, snapshot
from twistlm.sampling.sampler import WorkerContext
from twistlm.sampling.switching import Switching

# The base model's draws alone limit what the twist has never proposed.
FRESH = Switching(base=0.5)
# Draws at a time, about; part of what a seed reproduces.
CHUNK = 8192


@dataclass(frozen=True)
class Fresh:
    """n draws at each of R cases.

    Attributes:
        event: whether the score reached the threshold [R, n].
        log_w: log p₀/q̄ [R, n].
        unsteered: whether the draw is the base model's own [R, n].
        place: which draws the events are, r·n + i for each, in order [E].
        tokens: of the events [E, T].
        log_phi, log_p: of the events, and of the whole of each [E].
    """

    event: Tensor
    log_w: Tensor
    unsteered: Tensor
    place: Tensor
    tokens: Tensor
    log_phi: Tensor
    log_p: Tensor

    def of(self, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens [k, T], log p₀/q̄, log φ and log p₀ [k] of the events of one case."""
        mine = self.place // self.log_w.shape[1] == number
        return self.tokens[mine], self.log_w.flatten()[self.place[mine]], self.log_phi[mine], self.log_p[mine]

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name."""
        return dict(vars(self))

    @staticmethod
    def joined(parts: list["Fresh"]) -> "Fresh":
        """Further draws of the same cases, after one another."""
        widths = [part.log_w.shape[1] for part in parts]
        total, before = sum(widths), 0
        places = []
        for part, width in zip(parts, widths, strict=True):
            places.append(part.place // width * total + part.place % width + before)
            before += width
        place, order = torch.cat(places).sort()
        rows = {name: torch.cat([getattr(each, name) for each in parts], 1) for name in ("event", "log_w", "unsteered")}
        events = {name: torch.cat([getattr(each, name) for each in parts])[order] for name in EVENTS}
        return Fresh(**rows, place=place, **events)


EVENTS = ("tokens", "log_phi", "log_p")


@dataclass(frozen=True)
class DrawFresh:
    """A piece of work: `count` draws of all cases together, with the twist as it is now."""

    rng: Rng
    twist: Mapping[str, Tensor]
    count: int
    threshold: float

    def __call__(self, at: WorkerContext) -> Fresh:
        """Do it."""
        at.module.load_state_dict(self.twist)
        pool = Pool.begun(self.rng, at.sampler, at.cases, self.count, FRESH)
        return _fresh(pool, len(at.cases), math.log(self.threshold))


def draw_fresh(
    rng: Rng,
    here: WorkerContext,
    count: int,
    threshold: float,
    state: Path | None = None,
    engine: Engine = HERE,
) -> Fresh:
    """`count` draws of each case; φ ≥ `threshold` is the event.

    With `state`, a folder, every part is saved there, and those that are there already are not drawn again. `engine`
    draws; its workers have such a context.

    Raises:
        TwistError: a part could not be drawn.
    """
    num_cases, parts = len(here.cases), dict[int, Fresh]()
    each = max(1, CHUNK // num_cases)
    starts = range(0, count, each)
    paths = {at: None if state is None else state / f"fresh-{spelled(threshold)}-{at}.safetensors" for at in starts}
    for at, path in paths.items():
        if path is not None and path.exists():
            parts[at] = Fresh(**load_tensors(path)[0])
    missing = [at for at in starts if at not in parts]
    done = sum(part.log_w.numel() for part in parts.values())
    now = snapshot(here.module)
    pieces = [DrawFresh(rng.fork(at), now, min(each, count - at) * num_cases, threshold) for at in missing]
    with bar(f"estimating P[φ ≥ {spelled(threshold)}]", count * num_cases) as report:
        for at, piece, result in zip(missing, pieces, engine.do(pieces, here), strict=True):
            parts[at] = result
            if (path := paths[at]) is not None:
                save_tensors(path, result.tensors(), {})
            done += piece.count
            report(done, "")
    return Fresh.joined([parts[at] for at in starts])


def _fresh(pool: Pool, num_cases: int, goal: float) -> Fresh:
    samples, event = pool.samples, pool.samples.log_phi >= goal
    place = event.nonzero().squeeze(-1)
    return Fresh(
        event=event.view(num_cases, -1),
        log_w=pool.final_log_ratio.view(num_cases, -1),
        unsteered=pool.unsteered.view(num_cases, -1),
        place=place,
        tokens=samples.tokens[place],
        log_phi=samples.log_phi[place],
        log_p=samples.log_p[place].sum(-1),
    )
