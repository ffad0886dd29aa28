"""What the lines of a run folder's files hold, as far as anything here relies on it; more may stand in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, MinLen

from twistlm.core.errors import RunError
from twistlm.core.storage import as_type

# JSON has no infinity, so `Estimate.as_dict` writes it as text.
Number = float | Literal["inf", "-inf", "nan"] | None


@dataclass(frozen=True)
class EstimateFields:
    """A number with its interval."""

    value: Number
    low: Number
    high: Number
    n: int


@dataclass(frozen=True)
class Row:
    """Any line of metrics."""

    kind: str


@dataclass(frozen=True)
class UpdateRow:
    """An update of training."""

    update: int
    seconds: float


@dataclass(frozen=True)
class EvaluationRow:
    """A look at the held-out criterion."""

    update: int
    held_out: EstimateFields
    f: EstimateFields | None = None
    log_phi: EstimateFields | None = None
    kl_q_prior: EstimateFields | None = None


@dataclass(frozen=True)
class CertificateRow:
    """A certificate during training; what is in it, `Certificate.from_dict` says."""

    update: int


@dataclass(frozen=True)
class BoundFields:
    """A sandwich of log Z."""

    method: str
    num_particles: Annotated[int, Ge(1)]


@dataclass(frozen=True)
class CertificateFields:
    """What `Certificate.from_dict` takes as it is; the rest it reads as numbers with intervals."""

    bounds: Annotated[Sequence[BoundFields], MinLen(1)]
    log_Z_source: str
    seconds: float
    num_sequences: int
    num_tokens: int = 0
    ess_fraction: float | None = None
    stopped: str = ""


@dataclass(frozen=True)
class SampleRow:
    """A sample; those of older versions say nothing of single tokens."""

    text: str
    sampler: str = ""
    # What is not there is fine, and null is not.
    weight: float = 0.0
    log_phi: float = 0.0
    log_p: float = 0.0
    pieces: Sequence[str] = ()
    log_psi_moves: Sequence[float] = ()
    log_w_moves: Sequence[float] = ()


KINDS = {"update": UpdateRow, "evaluation": EvaluationRow, "certificate": CertificateRow}


def check_metrics(row: Any, where: str) -> dict[str, Any]:
    """A line of metrics.jsonl, if it is one.

    Raises:
        RunError: it is something else; the message names `where`, the field and the value.
    """
    kind = as_type(Row, row, where).kind
    if kind in KINDS:
        as_type(KINDS[kind], row, where)
    found: dict[str, Any] = row
    return found


def check_sample(row: Any, where: str) -> dict[str, Any]:
    """A line of samples.jsonl, if it is one.

    Raises:
        RunError: it is something else.
    """
    found = as_type(SampleRow, row, where)
    counts = {len(getattr(found, name)) for name in ("pieces", "log_psi_moves", "log_w_moves") if name in row}
    if len(counts) > 1:
        raise RunError(
            f"{where} is damaged: its tokens are {', '.join(map(str, sorted(counts)))} in number; sample again"
        )
    checked: dict[str, Any] = row
    return checked
