"""What a worker needs at hand to draw: the sampler, with what it has loaded, and the prompts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from twistlm.core.rng import Rng
from twistlm.core.work import Team, in_order
from twistlm.sampling.cases import Cases
from twistlm.sampling.sampler import Sampler, in_parts
from twistlm.sampling.samples import Samples
from twistlm.sampling.smc import NOTHING, Keep


@dataclass(frozen=True)
class Workplace:
    """A sampler and R cases for it; pieces of work say which."""

    sampler: Sampler
    cases: Cases

    @property
    def module(self) -> nn.Module:
        """Of the sampler's twist, whose parameters pieces of work bring."""
        twist = self.sampler.model.twist
        assert twist is not None
        return twist.module


Workers = Team[Workplace]


@dataclass(frozen=True)
class DrawPart:
    """A piece of work: draws of some cases with the twist as it is now. Arguments as for `Sampler.draw_at_once`."""

    rng: Rng
    rows: slice
    count: int
    keep: Keep
    paused: Tensor | None
    twist: Mapping[str, Tensor]

    def __call__(self, at: Workplace) -> Samples:
        """Do it."""
        at.module.load_state_dict(self.twist)
        return at.sampler.draw_at_once(self.rng, at.cases[self.rows], self.count, keep=self.keep, paused=self.paused)


def draw(
    team: Workers,
    rng: Rng,
    here: Workplace,
    num_samples: int,
    *,
    keep: Keep = NOTHING,
    paused: Tensor | None = None,
    batch: int,
    done: Callable[[int], None] | None = None,
) -> Samples:
    """What `here.sampler.draw` gives for all of its cases, drawn by a team at workplaces like this one.

    Raises:
        TwistError: a part could not be drawn.
    """
    now = here.module.state_dict()
    pieces, cases = [], here.cases
    for at, rows, columns in in_parts(len(cases), num_samples, batch):
        resting = None if paused is None else paused[rows, columns]
        pieces.append(DrawPart(rng.fork("proposal", at), rows, columns.stop - columns.start, keep, resting, now))
    parts: list[Samples] = []
    for part in in_order(team, pieces):
        parts.append(part)
        if done is not None:
            done(sum(map(len, parts)))
    # Sequences of one prompt share its tensor, which those from elsewhere do not.
    prompts = [case.prompt for case in cases for _ in range(num_samples)]
    return replace(Samples.concatenate(parts), prompts=prompts)
