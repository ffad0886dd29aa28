"""Terminal potentials φ on whole sequences: classifiers, thresholds, continuations, patterns, functions.

Importing this package is cheap: what is heavy (transformers, HDF5 weights) is loaded at the first evaluation.
"""

from twistlm.potentials.base import BasePotential, Power, Product, evaluate
from twistlm.potentials.classes import Classes
from twistlm.potentials.classifier import Classifier
from twistlm.potentials.continuation import Continuation
from twistlm.potentials.function import Function
from twistlm.potentials.grammar import Grammar
from twistlm.potentials.infilling import Infilling
from twistlm.potentials.jigsaw import Jigsaw
from twistlm.potentials.json_schema import JsonSchema
from twistlm.potentials.length import Length
from twistlm.potentials.lexical import Contains, Regex
from twistlm.potentials.named import named
from twistlm.potentials.reward import Reward
from twistlm.potentials.specs import from_spec, spec
from twistlm.potentials.texts import Pair, TextPotential
from twistlm.potentials.threshold import Threshold
from twistlm.potentials.words import Words

__all__ = [
    "BasePotential",
    "Classes",
    "Classifier",
    "Contains",
    "Continuation",
    "Function",
    "Grammar",
    "Infilling",
    "Jigsaw",
    "JsonSchema",
    "Length",
    "Pair",
    "Power",
    "Product",
    "Regex",
    "Reward",
    "TextPotential",
    "Threshold",
    "Words",
    "evaluate",
    "from_spec",
    "named",
    "spec",
]
