"""Cases: one prompt each, and what the target is given there, if anything.

R, the first axis everywhere, is a batch of cases: seeds, prompts and conditions are the same mechanism.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twistlm.core.errors import ConfigError
from twistlm.core.rng import Rng
from twistlm.models.base import Prompts

GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Case:
    """Where a target is sampled.

    Attributes:
        prompt: its tokens [P].
        given: what the potential is given there, tokens [c]; None for a target that differs by its prompt alone.
        weight: its share of a set of prompts, relative to the others'.
    """

    prompt: Tensor
    given: Tensor | None = None
    weight: float = 1.0


Cases = Sequence[Case]
"""R cases. Repeated prompts may be the same object."""


def prompts_of(cases: Cases) -> list[Tensor]:
    """The prompt of each."""
    return [case.prompt for case in cases]


def shares_of(cases: Cases) -> Tensor:
    """The weight of each, summing to 1, float64 [R]."""
    weights = torch.tensor([case.weight for case in cases], dtype=torch.float64)
    return weights / weights.sum()


def emphases_of(cases: Cases) -> Tensor | None:
    """What each counts in a mean over R cases, 1 on average, float64 [R]; None where all count alike."""
    if len({case.weight for case in cases}) == 1:
        return None
    return len(cases) * shares_of(cases)


def in_shares(rng: Rng, rows: Sequence[Tensor], shares: Tensor) -> Tensor:
    """Positions [n] in an order of which every beginning has each of R cases by its share, nearly (on average just so).

    A random start and steps of the golden ratio around the circle (additive recurrence: Kronecker's sequence, of the
    least discrepancy), cut into arcs as long as the shares. It ends before the first case that has no more.

    Args:
        rng: source of randomness.
        rows: positions of each case's sequences, taken in their order [n_r].
        shares: sum to 1, float64 [R].
    """
    total = sum(map(len, rows))
    turns = (rng.uniform((1, 1)) + GOLDEN * torch.arange(total, dtype=torch.float64)) % 1.0
    owner = torch.searchsorted(shares.cumsum(0)[:-1].contiguous(), turns[0], right=True)
    index, left = [], [iter(row.tolist()) for row in rows]
    for which in owner.tolist():
        if (position := next(left[which], None)) is None:
            break
        index.append(position)
    return torch.tensor(index, dtype=torch.long)


def rows_of(prompts: Prompts, cases: Cases) -> list[Tensor]:
    """For each case, the positions of its prompt among `prompts` [n_r], in order."""
    # A case may come twice: both have all of its prompt's sequences.
    keys = [tuple(case.prompt.tolist()) for case in cases]
    number = {key: at for at, key in enumerate(dict.fromkeys(keys))}
    # Sequences of one prompt mostly share one tensor, and reading it once is enough.
    identities = [*map(id, prompts)]
    by_identity = dict(zip(identities, prompts, strict=True))
    known = {key: number.get(tuple(prompt.tolist()), -1) for key, prompt in by_identity.items()}
    owner = torch.tensor([*map(known.__getitem__, identities)], dtype=torch.long)
    counts = torch.bincount(owner + 1, minlength=len(number) + 1).tolist()
    _, *rows = owner.argsort(stable=True).split(counts)
    return [rows[number[key]] for key in keys]


def distinct(prompts: Prompts) -> list[Case]:
    """A case for each of the prompts that differ, in the order of their first coming."""
    by_identity = {id(prompt): prompt for prompt in prompts}.values()
    return [Case(prompt) for prompt in {tuple(prompt.tolist()): prompt for prompt in by_identity}.values()]


def conditions_of(cases: Cases) -> Tensor | None:
    """What each is given [R, c]; None if none is given anything.

    Raises:
        ConfigError: some are and some are not.
    """
    given = [case.given for case in cases if case.given is not None]
    if not given:
        return None
    if len(given) < len(cases):
        raise ConfigError(f"{len(cases) - len(given)} of {len(cases)} cases are given no condition; give each its own")
    return torch.stack(given)
