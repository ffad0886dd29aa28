"""Tools that make tests exact: enumeration, an exhaustive Rng, and one statistical assertion."""

from twistlm.testing.enumeration import Enumeration, exact_twist
from twistlm.testing.exhaustive import ExhaustiveRng, enumerate_paths
from twistlm.testing.statistics import assert_mean

__all__ = ["Enumeration", "ExhaustiveRng", "assert_mean", "enumerate_paths", "exact_twist"]
