"""Certificates as files: the one that counts, and those that were made at other times with other settings.

A run's `certificate.json` is that of its last evaluation, and what it replaces moves to `evaluations/`. A run of a
sweep keeps the sweep's own, which tables are made of, so what comes afterwards goes to `evaluations/` itself.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from twistlm.certificates.certificate import Certificate
from twistlm.core.errors import RunError, TwistError
from twistlm.core.storage import as_type, digest, load_json, shortened
from twistlm.runs.folder import RunFolder, timeless
from twistlm.runs.rows import CertificateFields


@dataclass(frozen=True)
class Evaluation:
    """Certificates that were made together.

    Attributes:
        path: their file.
        time: when, in UTC; "" if nobody knows.
        settings: how.
        certificates: by what they are of: "before" training, "after", …
        twist: hash of the twist's file; None if nobody knows.
    """

    path: Path
    time: str
    settings: Mapping[str, Any]
    certificates: Mapping[str, Certificate]
    twist: str | None

    @staticmethod
    def read(path: Path) -> "Evaluation":
        """What a file holds.

        Raises:
            RunError: it is missing, damaged or of another version.
            StorageError: it cannot be read.
        """
        found = load_json(path)
        if not isinstance(found, dict):
            raise RunError(f"{path} is damaged: it holds {shortened(found)}, no certificates; make it again")
        about = as_type(_About, found, str(path))
        return Evaluation(path, about.time, about.settings, parsed(found, path), about.twist)


@dataclass(frozen=True)
class _About:
    """What stands beside certificates; nothing of it in files of older versions."""

    time: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    twist: str | None = None


def parsed(found: Mapping[str, Any], path: Path) -> dict[str, Certificate]:
    """The certificates among the values of a file.

    Raises:
        RunError: one is damaged.
    """
    return {
        name: _certificate(fields, name, path)
        for name, fields in found.items()
        if isinstance(fields, dict) and "bounds" in fields
    }


def _certificate(fields: Mapping[str, Any], name: str, path: Path) -> Certificate:
    as_type(CertificateFields, fields, f"{path}, {name!r}")
    try:
        found = Certificate.from_dict(fields)
        # What cannot be written again was none.
        found.as_dict()
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = shortened(error)
    else:
        if found.bounds:
            return found
        reason = "it has no bounds"
    raise RunError(
        f"{path} is damaged or of another version: {name!r} is no certificate ({reason}); make it again with: twistlm "
        f"evaluate {path.parent}"
    )


def during(rows: Sequence[Mapping[str, Any]], path: Path) -> dict[int, Certificate]:
    """Certificates during training among the rows of metrics of the run at `path`, by number of updates.

    Raises:
        RunError: one is damaged.
    """
    found = [row for row in rows if row["kind"] == "certificate"]
    return {row["update"]: _certificate(row, f"after {row['update']} updates", path) for row in found}


def write(folder: RunFolder, certificates: Mapping[str, Certificate], settings: Mapping[str, Any], **more: Any) -> Path:
    """Keep what was found of a run's twist, with how it was found; nothing that is there is lost."""
    made: dict[str, Any] = {
        "time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}",
        "settings": dict(settings),
        "twist": digest(folder.twist),
        **{name: each.as_dict() for name, each in certificates.items()},
        **more,
    }
    if folder.is_done:
        return folder.save_json(_free(folder, made["time"]), made)
    keep(folder, made)
    return folder.save_json(folder.certificate.name, made)


def keep(folder: RunFolder, new: Mapping[str, Any]) -> None:
    """Move the certificate that is there to the other evaluations, unless it says the same as the new one."""
    if not folder.certificate.exists():
        return
    with suppress(TwistError):
        if timeless(load_json(folder.certificate)) == timeless(new):
            return
    folder.move(folder.certificate, _free(folder, _time_of(folder.certificate)))


def others(folder: RunFolder) -> list[Evaluation]:
    """The evaluations beside the one that counts, the oldest first.

    Raises:
        RunError: one is damaged.
    """
    there = folder.evaluations
    return [Evaluation.read(path) for path in sorted(there.glob("*.json"))] if there.is_dir() else []


def count_others(folder: RunFolder) -> int:
    """How many there are, readable or not."""
    return sum(1 for _ in folder.evaluations.glob("*.json"))


def _time_of(path: Path) -> str:
    try:
        if time := Evaluation.read(path).time:
            return time
    except TwistError:
        # It is kept all the same.
        pass
    return f"{datetime.fromtimestamp(path.stat().st_mtime, UTC):%Y-%m-%dT%H:%M:%S}"


def _free(folder: RunFolder, time: str) -> str:
    """A name in the folder of evaluations that nothing has yet."""
    stem = "".join(character for character in time if character.isalnum())[:20]
    names = (f"{stem}{more}.json" for more in ("", *(f"_{number:04}" for number in range(2, 10_000))))
    return next(f"{folder.evaluations.name}/{name}" for name in names if not (folder.evaluations / name).exists())
