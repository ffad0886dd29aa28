"""Targets with hard constraints that can be enumerated."""

import torch

from twistlm import Target
from twistlm.models.tabular import TabularLM
from twistlm.potentials import Regex
from twistlm.potentials.base import Potential
from twistlm.sampling.twisted import TwistedLM
from twistlm.testing import Enumeration
from twistlm.twists.tabular import TabularHead

EOS = 2
PATTERNS = ["(01)*", "[01]*1", "0?1?", "[01]{3}", "1.*"]


def full(pattern: str) -> Regex:
    """The whole text has to be of the pattern."""
    return Regex(pattern, mode="fullmatch", constrain=True)


def target(potential: Potential, num_tokens: int = 3, eos: str = "absorb", seed: int = 3) -> Target:
    """Tokens 0 and 1 are written so, and 2 is EOS."""
    return Target(TabularLM.random(3, num_tokens + 1, seed, eos_token_id=EOS), potential, "1", num_tokens, eos=eos)


def truth(of: Target) -> Enumeration:
    return Enumeration.of(TwistedLM(of.lm, None, of.eos), of.bound_potential, of.prompt_tokens, of.num_tokens)


def learned(of: Target, seed: int = 1) -> TwistedLM:
    """A wrong twist beside the constraint's."""
    assert isinstance(of.lm, TabularLM)
    table = torch.randn(of.lm.table.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return of.twisted(TabularHead.twist(table))
