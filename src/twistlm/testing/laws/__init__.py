"""Laws that every part of a kind keeps: anyone can hold a part of their own against them, in one line of a test.

A law that is broken raises an AssertionError which says which, for what input, and how to mend it.
"""

from twistlm.testing.laws.loss import check_loss
from twistlm.testing.laws.potential import check_potential
from twistlm.testing.laws.proposal import check_proposal
from twistlm.testing.laws.twist import check_twist

__all__ = ["check_loss", "check_potential", "check_proposal", "check_twist"]
