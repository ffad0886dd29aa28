"""The nouns that parts of one's own are written with: what a model, a potential, a twist and a loss are, and see.

And those that annotations of a program need beside the classes of `twistlm`: `Engine` is what `twistlm.engine` returns,
`Entry` a text or a `Chat`, `Trust` what `trust_functions` may be, `Estimate` a number with its interval, `Rng` what
`Target.collect` draws with. (`Prompts` here is what a model reads; a set of them is `twistlm.Prompts`.)
"""

from twistlm.core.estimates import Estimate
from twistlm.core.rng import Rng
from twistlm.core.work import Engine
from twistlm.models.base import BaseLM, Decoder, DecoderState, Prompts
from twistlm.models.chats import Chat
from twistlm.potentials.protocol import ConditionalPotential, Potential
from twistlm.potentials.specs import Trust
from twistlm.sampling.particles import NextToken, Particles, SMCResult, StepInfo
from twistlm.sampling.prompts import Entry
from twistlm.sampling.samples import Samples, Siblings
from twistlm.training.scored import Scored
from twistlm.twists.base import Head, Twist

__all__ = [
    "BaseLM",
    "Chat",
    "ConditionalPotential",
    "Decoder",
    "DecoderState",
    "Engine",
    "Entry",
    "Estimate",
    "Head",
    "NextToken",
    "Particles",
    "Potential",
    "Prompts",
    "Rng",
    "SMCResult",
    "Samples",
    "Scored",
    "Siblings",
    "StepInfo",
    "Trust",
    "Twist",
]
