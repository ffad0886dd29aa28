"""What is known of φ and of the weights by definition, before anything is drawn: the ranges that intervals rest on."""

from dataclasses import dataclass

from twistlm.potentials.protocol import Potential


@dataclass(frozen=True)
class Ranges:
    """Bounds of log φ and of r = log p₀φ − log q; None where nothing is known.

    Attributes:
        low: no log φ is below it; −inf if φ may be 0.
        high: no log φ is above it, nor is log Z.
        is_base: q is p₀, so that r is log φ.
    """

    low: float | None = None
    high: float | None = None
    is_base: bool = False

    @staticmethod
    def of(potential: Potential, is_base: bool) -> "Ranges":
        """Those that a potential declares."""
        # A potential of one's own need not know of a lower bound.
        return Ranges(getattr(potential, "log_lower_bound", None), potential.log_upper_bound, is_base)

    @property
    def ratio_low(self) -> float | None:
        """No r is below it."""
        return self.low if self.is_base else None

    @property
    def ratio_high(self) -> float | None:
        """No r is above it."""
        return self.high if self.is_base else None
