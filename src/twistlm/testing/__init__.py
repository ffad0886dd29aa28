"""Tools that make tests exact (enumeration, an exhaustive Rng, one statistical assertion), and laws for parts."""

from twistlm.testing.enumeration import Enumeration, exact_twist
from twistlm.testing.exhaustive import ExhaustiveRng, enumerate_paths
from twistlm.testing.laws import check_loss, check_potential, check_proposal, check_twist
from twistlm.testing.statistics import assert_mean

__all__ = [
    "Enumeration",
    "ExhaustiveRng",
    "assert_mean",
    "check_loss",
    "check_potential",
    "check_proposal",
    "check_twist",
    "enumerate_paths",
    "exact_twist",
]
