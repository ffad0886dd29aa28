"""Cases: one prompt each, and what the target is given there, if anything.

R, the first axis everywhere, is a batch of cases: seeds, prompts and conditions are the same mechanism.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twistlm.core.errors import ConfigError


@dataclass(frozen=True)
class Case:
    """Where a target is sampled.

    Attributes:
        prompt: its tokens [P].
        given: what the potential is given there, tokens [c]; None for a target that differs by its prompt alone.
    """

    prompt: Tensor
    given: Tensor | None = None


Cases = Sequence[Case]
"""R cases. Repeated prompts may be the same object."""


def prompts_of(cases: Cases) -> list[Tensor]:
    """The prompt of each."""
    return [case.prompt for case in cases]


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
