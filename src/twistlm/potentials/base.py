"""What every potential shares: algebra, and the one checked evaluation.

Your own potential subclasses `BasePotential` (tokens) or `TextPotential` (in `texts`) and implements one method.
"""

import copy
import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from twistlm.core.errors import ConfigError, PotentialError, TwistError, UpperBoundError
from twistlm.core.memory import in_pieces
from twistlm.core.plain import make_plain
from twistlm.core.registry import register
from twistlm.models.base import BaseLM, Prompts
from twistlm.potentials.protocol import ConditionalPotential, Potential

# Relative slack of the upper-bound check: a log-probability computed in float32 may end slightly above 0.
BOUND_TOLERANCE = 1e-5
# A score in float32 is known to a millionth or so, and β times its error should be less than a nat.
MOST_BETA = 1e6
# What a potential holds that changes none of its values.
IMMATERIAL = {"lm", "device", "batch_size", "constrain"}
# Characters of a text (or of a list of token ids) that an error message quotes.
QUOTED = 80


class BasePotential(Potential, ABC):
    """A potential with algebra: `a * b` is the product of two, `a ** beta` a power."""

    log_upper_bound: float | None = None
    log_lower_bound: float | None = None
    """What log φ is never below, −inf if φ may be 0; None if that is not known. Intervals rest on both bounds."""
    scores_prefixes: bool = False
    """Whether a text that is not finished has a score that tells something of what will become of it."""
    lm: BaseLM | None = None
    """The model it was bound to, None before `bind`."""

    def bind(self, lm: BaseLM) -> Self:
        """A copy that reads sequences of `lm`; parts that are potentials are bound with it."""
        bound = copy.copy(self)
        object.__setattr__(bound, "lm", lm)  # the built-in potentials are frozen dataclasses
        return bound

    def bound_lm(self) -> BaseLM:
        """The model it was bound to.

        Raises:
            PotentialError: not bound to a model.
        """
        if self.lm is None:
            raise PotentialError(
                f"{type(self).__name__} is not bound to a model: use it through twistlm.Target, or call .bind(lm) first"
            )
        return self.lm

    @abstractmethod
    def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """log φ [B] of B prompts followed by tokens [B, T], in nats; call it through `evaluate`."""

    def score_prefixes(self, prompts: Prompts, tokens: Tensor, conditions: Tensor | None = None) -> Tensor:
        """That score [B] of prompts followed by the first tokens [B, t], in nats: log φ, as if each text ended there.

        Whatever grows with the chances will do, since its weight is fitted; call it through `prefixes.prefix_scores`.
        """
        return evaluate(self, prompts, tokens, conditions)

    def identified_by(self) -> Any:
        """What makes it this very potential, besides its class: see `twistlm.core.identity`.

        Its arguments, or whatever it holds if it is no dataclass. One that reads weights by their name adds them.
        """
        arguments = (
            {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.init}
            if dataclasses.is_dataclass(self)
            else vars(self)
        )
        return {name: value for name, value in arguments.items() if name not in IMMATERIAL}

    def __mul__(self, other: Potential) -> "Product":
        return Product((self, other))

    def __pow__(self, beta: float) -> "Power":
        return Power(self, beta)


# --- Algebra ------------------------------------------------------------------------------------------------


@register("potential", "product")
@dataclass(frozen=True)
class Product(BasePotential):
    """The product of several potentials: every constraint at once.

    Raises:
        ConfigError: there are none, or one differs from sequence to sequence by a condition.
    """

    parts: tuple[Potential, ...]

    def __post_init__(self) -> None:
        """Flatten nested products and add up the bounds (None if any part has none)."""
        flat: list[Potential] = []
        for part in self.parts:
            flat.extend(part.parts if isinstance(part, Product) else (part,))
        if not flat:
            raise ConfigError("a product needs at least one potential")
        for part in flat:
            _check_unconditional(part, "a part of a product")
        object.__setattr__(self, "parts", tuple(flat))
        for name in ("log_upper_bound", "log_lower_bound"):
            bounds = [bound for part in flat if (bound := getattr(part, name, None)) is not None]
            object.__setattr__(self, name, sum(bounds) if len(bounds) == len(flat) else None)
        object.__setattr__(self, "scores_prefixes", bool(self._scoring))

    def bind(self, lm: BaseLM) -> "Product":
        """The product of the bound parts."""
        return Product(tuple(part.bind(lm) for part in self.parts))

    @property
    def _scoring(self) -> list[BasePotential]:
        return [part for part in self.parts if isinstance(part, BasePotential) and part.scores_prefixes]

    def score_prefixes(self, prompts: Prompts, tokens: Tensor, conditions: Tensor | None = None) -> Tensor:
        """The sum over the parts that score prefixes [B]."""
        return torch.stack([part.score_prefixes(prompts, tokens, conditions) for part in self._scoring]).sum(0)

    def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """Σ log φ_i [B]. Each part is checked on its own, so an error names the part."""
        return torch.stack([evaluate(part, prompts, tokens) for part in self.parts]).sum(0)


@register("potential", "power")
@dataclass(frozen=True)
class Power(BasePotential):
    """A potential to the power β > 0: sharper above 1, softer below.

    Raises:
        ConfigError: β is not positive and finite, or the base differs from sequence to sequence by a condition.
    """

    base: Potential
    beta: float

    def __post_init__(self) -> None:
        """Check β and scale the bounds."""
        make_plain(self)
        check_beta(self.beta)
        _check_unconditional(self.base, "the base of a power")
        for name in ("log_upper_bound", "log_lower_bound"):
            bound = getattr(self.base, name, None)
            object.__setattr__(self, name, None if bound is None else self.beta * bound)
        object.__setattr__(self, "scores_prefixes", getattr(self.base, "scores_prefixes", False))

    def bind(self, lm: BaseLM) -> "Power":
        """The power of the bound base."""
        return Power(self.base.bind(lm), self.beta)

    def score_prefixes(self, prompts: Prompts, tokens: Tensor, conditions: Tensor | None = None) -> Tensor:
        """β times the base's [B]."""
        assert isinstance(self.base, BasePotential)
        return self.beta * self.base.score_prefixes(prompts, tokens, conditions)

    def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """β log φ [B]."""
        return self.beta * evaluate(self.base, prompts, tokens)


def _check_unconditional(potential: Potential, what: str) -> None:
    """Raise ConfigError for a potential with a condition: base draws would be no exact samples of what it is made into.

    They are, since p₀(s) φ(s, c) is the law of a draw with its condition, which that of φ to a power or times another
    potential is not.
    """
    if isinstance(potential, ConditionalPotential):
        raise ConfigError(
            f"{type(potential).__name__} differs from sequence to sequence by its condition and cannot be {what}; "
            "use it by itself"
        )


def power_of(potential: Potential) -> float:
    """β of a potential that is a power, 1 for any other: what divides log φ to give the logarithm of the score."""
    return float(getattr(potential, "beta", 1.0))


def check_beta(beta: float) -> None:
    """Raise ConfigError unless β is positive, and small enough that β log φ is more than the scorer's rounding."""
    if not (math.isfinite(beta) and beta > 0):
        raise ConfigError(f"beta must be positive and finite, not {beta}")
    if beta > MOST_BETA:
        raise ConfigError(
            f"beta must be at most {MOST_BETA:g}, not {beta:g}: beyond it a scorer's rounding decides what is sampled"
        )


def bound_slack(potential: Potential, name: str = "log_upper_bound") -> float:
    """How far beyond that bound of its log φ may be by rounding; of a power or product as far as its parts together."""
    bound = getattr(potential, name, None)
    slack = 0.0 if bound is None or not math.isfinite(bound) else BOUND_TOLERANCE * max(1.0, abs(bound))
    if isinstance(potential, Power):
        return max(slack, potential.beta * bound_slack(potential.base, name))
    if isinstance(potential, Product):
        return max(slack, sum(bound_slack(part, name) for part in potential.parts))
    return slack


def check_reachable(name: str, threshold: float, scorer: Potential) -> None:
    """Raise ConfigError if φ of the scorer can never reach the threshold."""
    bound = scorer.log_upper_bound
    if bound is not None and threshold > 0 and math.log(threshold) > bound + BOUND_TOLERANCE:
        raise ConfigError(
            f"{name} = {threshold:g} is never reached: φ is at most {math.exp(bound):g}; choose a lower one"
        )


def indicator(hit: Tensor, eps: float) -> Tensor:
    """log(1[hit] + eps), float64 [B]; −inf where not hit and eps is 0."""
    return torch.tensor(indicator_bounds(eps), dtype=torch.float64).to(hit.device)[hit.long()]


def indicator_bounds(eps: float) -> tuple[float, float]:
    """Both values of log(1[hit] + eps)."""
    return math.log(eps) if eps > 0 else -math.inf, math.log1p(eps)


def set_indicator_bounds(potential: BasePotential, eps: float) -> None:
    """Let a frozen potential that is an indicator declare its two values as bounds."""
    low, high = indicator_bounds(eps)
    object.__setattr__(potential, "log_lower_bound", low)
    object.__setattr__(potential, "log_upper_bound", high)


def check_eps(eps: float) -> None:
    """Raise ConfigError unless eps is zero or positive, and finite."""
    if not (math.isfinite(eps) and eps >= 0):
        raise ConfigError(f"eps must be 0 or positive, and finite, not {eps}")


# --- The checked entry --------------------------------------------------------------------------------------


def evaluate(potential: Potential, prompts: Prompts, tokens: Tensor, conditions: Tensor | None = None) -> Tensor:
    """log φ of B prompts followed by tokens [B, T]: float64 [B], without gradient. Everyone calls this one.

    `conditions` [B, c] are for a potential that needs them. Where memory does not suffice for all at once, it is given
    some of the sequences at a time. It is handed copies, and what it returns is copied:
    whatever it does to its arguments or later to its result, the caller's tensors are as they were.

    Raises:
        ConfigError: conditions are missing, of another length, or given to a potential that takes none.
        PotentialError: the potential raised, or returned the wrong shape, NaN or +inf.
        UpperBoundError: a value exceeds the potential's own `log_upper_bound`.
        TwistError: whatever the potential raised deliberately (a missing model, say).
    """
    name = type(potential).__name__
    log_phi_of = _of_rows(potential, prompts, tokens, conditions)
    with torch.no_grad():
        try:
            log_phi = in_pieces(log_phi_of, len(tokens), f"evaluating {name}")
        except TwistError:
            raise
        except Exception as error:
            row = None if conditions is not None else _culprit(potential, prompts, tokens)
            where = _describe(potential, prompts, tokens, row)
            raise PotentialError(f"{name} raised {type(error).__name__}: {_short(str(error))}{where}") from error
    if not isinstance(log_phi, Tensor) or log_phi.shape != (len(tokens),):
        got = f"shape {list(log_phi.shape)}" if isinstance(log_phi, Tensor) else type(log_phi).__name__
        raise PotentialError(f"{name}.log_phi returned {got}; expected a tensor of shape [{len(tokens)}]")
    log_phi = log_phi.detach().to(tokens.device, torch.float64, copy=True)
    invalid = log_phi.isnan() | (log_phi == math.inf)
    if invalid.any():
        row = int(invalid.nonzero()[0])
        where = _describe(potential, prompts, tokens, row)
        raise PotentialError(f"{name} returned log φ = {log_phi[row].item()}{where}; it must be a number or -inf")
    bound = potential.log_upper_bound
    if bound is not None:
        if math.isnan(bound):
            raise UpperBoundError(f"{name}'s log_upper_bound is NaN, which bounds nothing; give a number, or None")
        above = log_phi > bound + bound_slack(potential)
        if above.any():
            row = int(above.nonzero()[0])
            where = _describe(potential, prompts, tokens, row)
            raise UpperBoundError(
                f"{name} returned log φ = {log_phi[row].item():.6g} above its log_upper_bound {bound:.6g}"
                f"{where}; raise the bound, or set it to None"
            )
    return log_phi


def copied(prompts: Prompts) -> list[Tensor]:
    """Copies of the prompts; entries that are one tensor stay one."""
    copies = {id(prompt): prompt.clone() for prompt in {id(prompt): prompt for prompt in prompts}.values()}
    return [copies[id(prompt)] for prompt in prompts]


def _of_rows(
    potential: Potential, prompts: Prompts, tokens: Tensor, conditions: Tensor | None
) -> Callable[[slice], Tensor]:
    """log φ of some of the sequences, by copies of them."""
    if isinstance(potential, ConditionalPotential):
        if conditions is None:
            raise ConfigError(f"{type(potential).__name__} differs from sequence to sequence; pass conditions=…")
        if conditions.shape[1] != potential.num_condition:
            raise ConfigError(
                f"conditions have {conditions.shape[1]} tokens and {type(potential).__name__} takes "
                f"{potential.num_condition}; cut them, or set num_condition"
            )
        return lambda rows: potential.log_phi_given(
            copied(prompts[rows]), tokens[rows].clone(), conditions[rows].clone()
        )
    if conditions is not None:
        raise ConfigError(f"{type(potential).__name__} takes no conditions; leave them out")
    return lambda rows: potential.log_phi(copied(prompts[rows]), tokens[rows].clone())


def _culprit(potential: Any, prompts: Prompts, tokens: Tensor) -> int | None:
    """The first sequence on which `potential` raises by itself, by bisection; None if only the batch does."""
    low, high = 0, len(tokens)
    while high - low > 1:
        middle = (low + high) // 2
        if _raises(potential, prompts[low:middle], tokens[low:middle]):
            high = middle
        elif _raises(potential, prompts[middle:high], tokens[middle:high]):
            low = middle
        else:
            return None
    return low if high > low else None


def _raises(potential: Any, prompts: Prompts, tokens: Tensor) -> bool:
    try:
        potential.log_phi(copied(prompts), tokens.clone())
    except Exception:
        return True
    return False


def _describe(potential: Any, prompts: Prompts, tokens: Tensor, row: int | None) -> str:
    """' on the text …' of sequence `row`, its tokens where there is no tokenizer; '' if no row is known."""
    if row is None:
        return ""
    lm = getattr(potential, "lm", None)
    sequence = torch.cat([prompts[row].to(tokens), tokens[row]])
    if lm is not None:
        try:
            return f" on the text {_short(repr(lm.decode([sequence])[0]))}"
        except Exception:
            pass  # a model without a tokenizer must not hide the error being described
    return f" on the tokens {_short(str(sequence.tolist()))}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= QUOTED else line[: QUOTED - 1] + "…"
