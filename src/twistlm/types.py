"""The nouns that parts of one's own are written with: what a model, a potential, a twist and a loss are, and see."""

from twistlm.models.base import BaseLM, Decoder, DecoderState, Prompts
from twistlm.potentials.protocol import ConditionalPotential, Potential
from twistlm.sampling.particles import NextToken, Particles, SMCResult, StepInfo
from twistlm.sampling.samples import Samples, Siblings
from twistlm.training.scored import Scored
from twistlm.twists.base import Head, Twist

__all__ = [
    "BaseLM",
    "ConditionalPotential",
    "Decoder",
    "DecoderState",
    "Head",
    "NextToken",
    "Particles",
    "Potential",
    "Prompts",
    "SMCResult",
    "Samples",
    "Scored",
    "Siblings",
    "StepInfo",
    "Twist",
]
