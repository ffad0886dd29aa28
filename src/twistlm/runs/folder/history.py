"""metrics.jsonl: what happened during training, line by line."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twistlm.certificates.certificate import Certificate
from twistlm.core.errors import RunError, StorageError
from twistlm.core.estimates import Estimate
from twistlm.core.storage import as_type, load_lines, parse_json, save_lines
from twistlm.runs.folder.evaluations import EstimateFields, certificate_of

NAME = "metrics.jsonl"


@dataclass(frozen=True)
class Row:
    """Any line."""

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
    """A certificate during training; what is in it, `certificate_of` says."""

    update: int


@dataclass(frozen=True)
class WarningRow:
    """Something that went wrong."""

    update: int
    message: str


KINDS = {"update": UpdateRow, "evaluation": EvaluationRow, "certificate": CertificateRow, "warning": WarningRow}


@dataclass(frozen=True)
class Look:
    """A look at the held-out criterion.

    Attributes:
        update: after so many.
        held_out: G on held-out exact samples, or what else training judges by.
        f: F of fresh draws; None where none were made.
    """

    update: int
    held_out: Estimate
    f: Estimate | None

    @staticmethod
    def of(row: Mapping[str, Any]) -> "Look":
        """What a line says."""
        f = row.get("f")
        return Look(row["update"], Estimate.from_dict(row["held_out"]), None if f is None else Estimate.from_dict(f))


@dataclass(frozen=True)
class History:
    """What happened during training.

    Attributes:
        seconds: spent on each update.
        looks: at the held-out criterion, in order.
        certificates: made on the way, by number of updates.
        warnings: what was warned of.
    """

    seconds: Sequence[float]
    looks: Sequence[Look]
    certificates: Mapping[int, Certificate]
    warnings: Sequence[str] = ()

    @staticmethod
    def of(rows: Sequence[Mapping[str, Any]], file: Path) -> "History":
        """What the lines of a file say, each of which has been looked at alone.

        Raises:
            RunError: a certificate is damaged.
        """
        updates, looks, certified = (
            [row for row in rows if row["kind"] == kind] for kind in ("update", "evaluation", "certificate")
        )
        return History(
            [row["seconds"] for row in updates],
            [Look.of(row) for row in looks],
            {row["update"]: certificate_of(row, f"after {row['update']} updates", file) for row in certified},
            [row["message"] for row in rows if row["kind"] == "warning"],
        )


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add a line to the metrics of the run folder at `path`; a kill can at most leave the last one incomplete.

    Raises:
        StorageError: the system refuses.
    """
    file = path / NAME
    try:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
    except OSError as error:
        raise StorageError(f"{file} cannot be written ({error.strerror}); continue with --resume") from error


def read(path: Path) -> list[dict[str, Any]]:
    """Every complete line of the metrics of the run folder at `path`.

    Raises:
        RunError: a line other than the last is not JSON, or something else is in one.
    """
    file = path / NAME
    if not file.exists():
        return []
    lines, rows = load_lines(file), []
    for number, line in enumerate(lines, 1):
        where = f"{file} at line {number}"
        try:
            row = parse_json(line, where)
        except RunError:
            if number == len(lines):
                break
            raise
        rows.append(_checked(row, where))
    return rows


def truncate(path: Path, count: int) -> list[dict[str, Any]]:
    """Keep the first `count` lines, those that a checkpoint knows; what came later will be done again."""
    rows = read(path)[:count]
    save_lines(path / NAME, rows)
    return rows


def _checked(row: Any, where: str) -> dict[str, Any]:
    """A line, if it is one.

    Raises:
        RunError: it is something else; the message names `where`, the field and the value.
    """
    kind = as_type(Row, row, where).kind
    if kind in KINDS:
        as_type(KINDS[kind], row, where)
    checked: dict[str, Any] = row
    return checked
