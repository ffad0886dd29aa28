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

NAME = "metrics.jsonl"


@dataclass(frozen=True)
class Row:
    """Any line; fields that are of no class here are for a reader."""

    kind: str


@dataclass(frozen=True)
class Update:
    """An update of training."""

    update: int
    seconds: float


@dataclass(frozen=True)
class Look:
    """A look at the held-out criterion.

    Attributes:
        update: after so many.
        held_out: G on held-out exact samples, or what else training judges by.
        f: F of fresh draws, and what else they say; None where none were made.
    """

    update: int
    held_out: Estimate
    f: Estimate | None = None
    log_phi: Estimate | None = None
    kl_q_prior: Estimate | None = None


@dataclass(frozen=True)
class Certified:
    """A certificate during training."""

    update: int
    certificate: Certificate


@dataclass(frozen=True)
class Warned:
    """Something that went wrong."""

    update: int
    message: str


Line = Update | Look | Certified | Warned | Row
KINDS = {"update": Update, "evaluation": Look, "certificate": Certified, "warning": Warned}


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
    def of(rows: Sequence[Mapping[str, Any]], where: str) -> "History":
        """What lines say.

        Raises:
            RunError: one is damaged; `where` names the file.
        """
        read = [typed(row, where) for row in rows]
        return History(
            [row.seconds for row in read if isinstance(row, Update)],
            [row for row in read if isinstance(row, Look)],
            {row.update: row.certificate for row in read if isinstance(row, Certified)},
            [row.message for row in read if isinstance(row, Warned)],
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
    lines, rows = load_lines(file), list[dict[str, Any]]()
    for number, line in enumerate(lines, 1):
        where = f"{file} at line {number}"
        try:
            row = parse_json(line, where)
        except RunError:
            if number == len(lines):
                break
            raise
        typed(row, where)
        rows.append(row)
    return rows


def truncate(path: Path, count: int) -> list[dict[str, Any]]:
    """Keep the first `count` lines, those that a checkpoint knows; what came later will be done again."""
    rows = read(path)[:count]
    save_lines(path / NAME, rows)
    return rows


def typed(row: Any, where: str) -> Line:
    """A line by its kind.

    Raises:
        RunError: it is something else; the message names `where`, the field and the value.
    """
    kind: Any = KINDS.get(as_type(Row, row, where).kind, Row)
    found: Line = as_type(kind, row, where)
    return found
