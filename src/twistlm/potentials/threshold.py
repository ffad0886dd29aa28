"""A hard (or almost hard) threshold on a score."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, Self, runtime_checkable

from torch import Tensor

from twistlm.core.errors import ConfigError, PotentialError
from twistlm.core.plain import make_plain
from twistlm.core.registry import register
from twistlm.models.base import BaseLM, Prompts
from twistlm.potentials.base import BasePotential, check_eps, check_reachable, evaluate, indicator, set_indicator_bounds
from twistlm.potentials.prefixes import FARTHEST
from twistlm.potentials.protocol import Potential


@runtime_checkable
class HasLogit(Protocol):
    """A potential that also exposes the raw output of the network behind it."""

    def logit(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """The network's own logit of the label [B], before any sign, sigmoid or power."""


@register("potential", "threshold")
@dataclass(frozen=True)
class Threshold(BasePotential):
    """1[score ≥ eta] + eps, or 1[score ≤ eta] + eps with `direction="<="`.

    The setting of Zhao et al. (2024), section 7.1, on a classifier whose logit means "not toxic", is
    `Threshold(classifier, -5, on="logit", direction="<=", eps=1e-16)`.

    Attributes:
        scorer: the potential whose value is the score.
        eta: the threshold, on the scale that `on` names.
        eps: φ where the score misses; 0 makes it a hard constraint (log φ = −inf).
        on: "probability" compares φ of the scorer, "log_probability" its log φ (nats), "logit" its raw logit.
        direction: which side passes.

    Raises:
        ConfigError: a setting is unknown or out of range, or the scorer has no logit.
    """

    scorer: Potential
    eta: float
    eps: float = 0.0
    on: Literal["probability", "log_probability", "logit"] = "probability"
    direction: Literal[">=", "<="] = ">="

    def __post_init__(self) -> None:
        """Check the settings and derive the bounds, log(eps) and log(1 + eps)."""
        make_plain(self)
        check_eps(self.eps)
        if self.on not in ("probability", "log_probability", "logit"):
            raise ConfigError(f"on must be 'probability', 'log_probability' or 'logit', not {self.on!r}")
        if self.direction not in (">=", "<="):
            raise ConfigError(f"direction must be '>=' or '<=', not {self.direction!r}")
        if not math.isfinite(self.eta) or (self.on == "probability" and self.eta < 0):
            raise ConfigError(f"eta = {self.eta} is out of range for on={self.on!r}")
        if self.on == "probability" and self.direction == ">=":
            check_reachable("eta", self.eta, self.scorer)
        if self.on == "logit" and not isinstance(self.scorer, HasLogit):
            raise ConfigError(f"{type(self.scorer).__name__} has no logit; use on='probability' or 'log_probability'")
        set_indicator_bounds(self, self.eps)
        object.__setattr__(self, "scores_prefixes", getattr(self.scorer, "scores_prefixes", False))

    def bind(self, lm: BaseLM) -> Self:
        """The threshold on the bound scorer."""
        bound = super().bind(lm)
        object.__setattr__(bound, "scorer", self.scorer.bind(lm))
        return bound

    def score_prefixes(self, prompts: Prompts, tokens: Tensor, conditions: Tensor | None = None) -> Tensor:
        """The score itself [B], which tells how near a prefix is; with its sign changed where low ones pass.

        Then it is finite upwards: +∞ would make a product's sum NaN beside another part's −∞.
        """
        assert isinstance(self.scorer, BasePotential)
        if isinstance(self.scorer, HasLogit) and self.on == "logit":
            score = self.scorer.logit(prompts, tokens)
        else:
            score = self.scorer.score_prefixes(prompts, tokens, conditions)
        return score if self.direction == ">=" else -score.clamp_min(-FARTHEST)

    def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """log φ, float64 [B]."""
        if self.on == "logit":
            assert isinstance(self.scorer, HasLogit)  # checked on construction
            score = self.scorer.logit(prompts, tokens)
            if score.isnan().any():
                raise PotentialError(f"{type(self.scorer).__name__} returned a logit that is NaN")
        else:
            score = evaluate(self.scorer, prompts, tokens)
        # Compared on the log scale: exp would round a small probability to 0.
        eta = (math.log(self.eta) if self.eta > 0 else -math.inf) if self.on == "probability" else self.eta
        return indicator(score >= eta if self.direction == ">=" else score <= eta, self.eps)
