"""The event behind a potential that only tells yes from no, and how likely a certificate says that it is.

With φ = 1[event] + ε, Z = E_p₀[φ] = P[event] + ε, so that the interval of log Z is one of the event's probability. Of
any other potential Z is no probability, and nothing is said.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twistlm.certificates.certificate import Certificate
from twistlm.certificates.probability import one_in
from twistlm.core.errors import ConfigError
from twistlm.core.estimates import Estimate
from twistlm.core.registry import lookup
from twistlm.potentials.base import Power, Product
from twistlm.potentials.constraint import Constraint
from twistlm.potentials.threshold import Threshold
from twistlm.report.record import Record

# Of ε, below which what Z has more than it is rounding.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Chance:
    """How likely an event is.

    Attributes:
        probability: under p₀.
        under_q: under the sampler's proposal.
    """

    probability: Estimate
    under_q: Estimate

    @staticmethod
    def of(certificate: Certificate, eps: float) -> "Chance | None":
        """What a certificate at one prompt says, for an indicator with this ε; None if it does not limit log Z."""
        kls = certificate.divergences
        if not kls.log_Z.is_known:
            return None
        # Z is hardly above 1, and what is infinite says no more.
        value, low, high = (math.exp(min(x, 1.0)) for x in (kls.log_Z.value, kls.log_Z.low, kls.log_Z.high))
        return Chance(_less(Estimate(value, low, high, kls.log_Z.n), eps), _less(kls.phi, eps))

    @property
    def words(self) -> str:
        """As "1 in N answers", with the interval."""
        return one_in(self.probability)

    @property
    def number(self) -> tuple[str, str]:
        """The probability itself, and its interval."""
        value, low, high = (f"{x:.2e}" for x in (self.probability.value, self.probability.low, self.probability.high))
        return (value, f"[{low}, {high}]") if self.probability.value > 0 else ("never seen", f"(below {high})")

    @property
    def share(self) -> str:
        """How much of what q writes it is."""
        value, low, high = (f"{100 * x:.1f}" for x in (self.under_q.value, self.under_q.low, self.under_q.high))
        return f"{value} % [{low}, {high}]"


def eps_of(record: Record) -> float | None:
    """ε of a run's potential if that is an indicator, by its description alone; None if it is not, or has none."""
    return None if record.outline.target is None else _eps(record.outline.target.potential)


def chance_of(record: Record) -> Chance | None:
    """How likely the event of a run at one prompt is; None without an event, and for a set of prompts.

    The certificate of a set has means of log Z, which are no probability; `Chance.of` takes those of its prompts.
    """
    eps = eps_of(record)
    return None if eps is None or record.after.by_prompt else Chance.of(record.after, eps)


def _eps(described: Any) -> float | None:
    if not isinstance(described, Mapping) or not isinstance(described.get("name"), str):
        return None
    try:
        kind = lookup("potential", described["name"]).value
    except ConfigError:
        return None
    if kind is Product:
        # All of several events are one, if each is hard.
        parts = described.get("parts") or [None]
        return 0.0 if all(_eps(part) == 0 for part in parts) else None
    if kind is Power:
        return 0.0 if _eps(described.get("base")) == 0 else None
    if isinstance(kind, type) and issubclass(kind, Threshold | Constraint):
        eps = described.get("eps", 0.0)
        return float(eps) if isinstance(eps, int | float) and 0 <= eps < math.inf else None
    return None


def _less(estimate: Estimate, eps: float) -> Estimate:
    """A mean of φ without its ε, as a probability."""

    def without(x: float) -> float:
        return 0.0 if x <= eps * (1 + ROUNDING) else min(1.0, x - eps)

    return Estimate(without(estimate.value), without(estimate.low), without(estimate.high), estimate.n)
