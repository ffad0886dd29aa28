"""Certificates as files: the one that counts, and those that were made at other times with other settings.

A run's certificate.json is that of its last evaluation, and what it replaces moves to evaluations/. A run of a sweep
keeps the sweep's own, which tables are made of, so what comes afterwards goes to evaluations/ itself.

That a sweep has finished its run stands in a field of done.json, which only `finish` writes, after the certificate. No
other file says it by being there: not a certificate, which `twistlm evaluate` makes as well, nor done.json itself.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, MinLen

from twistlm.certificates.certificate import Certificate
from twistlm.core.advice import coded
from twistlm.core.errors import DamagedError, RunError, StorageError, TwistError
from twistlm.core.storage import as_json, as_type, digest, load_json, load_typed, remedied, shortened
from twistlm.runs.folder.place import Place
from twistlm.sampling.description import PromptFields

logger = logging.getLogger("twistlm")

CERTIFICATE, EVALUATIONS, DONE = "certificate.json", "evaluations", "done.json"

# JSON has no infinity, so `Estimate.as_dict` writes it as text.
Number = float | Literal["inf", "-inf", "nan"]


@dataclass(frozen=True)
class EstimateFields:
    """A number with its interval."""

    value: Number
    low: Number
    high: Number
    n: int


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
class About:
    """What stands beside certificates; nothing of it in files of older versions."""

    time: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    twist: str | None = None
    prompts: tuple[PromptFields, ...] = ()

    def says_as(self, other: "Evaluation") -> bool:
        """Whether another was made in the same way, of the same twist at the same prompts."""
        return (self.settings, self.twist, self.prompts) == (other.settings, other.twist, other.prompts)


@dataclass(frozen=True)
class Mark:
    """What a sweep says of a run: whether it is done, and the hashes of what came out by the names of files.

    The field is wanting in files of older versions, which wrote them when a run was done and at no other time.
    """

    sha256: Mapping[str, str]
    done: bool = True


@dataclass(frozen=True)
class Evaluation:
    """Certificates that were made together.

    Attributes:
        path: their file.
        time: when, in UTC; "" if nobody knows.
        settings: how.
        certificates: by what they are of: "before" training, "after", …
        twist: hash of the twist's file; None if nobody knows.
        prompts: where, of a set; empty in files of older versions, and where there is one.
    """

    path: Path
    time: str
    settings: Mapping[str, Any]
    certificates: Mapping[str, Certificate]
    twist: str | None
    prompts: tuple[PromptFields, ...] = ()

    @staticmethod
    def read(path: Path) -> "Evaluation":
        """What a file holds.

        Raises:
            RunError: it is missing, damaged or of another version.
            StorageError: it cannot be read.
        """
        values = load_json(path)
        if not isinstance(values, dict):
            raise DamagedError(f"{path} is damaged: it holds {shortened(values)}, no certificates")
        about = as_type(About, values, str(path))
        certificates = {
            name: certificate_of(fields, name, path)
            for name, fields in values.items()
            if isinstance(fields, dict) and "bounds" in fields
        }
        return Evaluation(path, about.time, about.settings, certificates, about.twist, about.prompts)


def certificate_of(fields: Mapping[str, Any], name: str, path: Path) -> Certificate:
    """A certificate from its fields, which have this name in the file at `path`.

    Raises:
        RunError: it is damaged.
    """
    as_type(CertificateFields, fields, f"{path}, {name!r}")
    try:
        certificate = Certificate.from_dict(fields)
        # What cannot be written again was none.
        certificate.as_dict()
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = shortened(error)
    else:
        if certificate.bounds:
            return certificate
        reason = "it has no bounds"
    raise DamagedError(f"{path} is damaged or of another version: {name!r} is no certificate ({reason})")


class Evaluations:
    """The evaluations of a run: that which counts, the others, and whether a sweep holds to it.

    Args:
        place: the run folder.
        twist: its file of the twist, whose hash stands in each.
    """

    def __init__(self, place: Place, twist: Path) -> None:
        self._place, self._twist = place, twist

    @property
    def folder(self) -> Path:
        """Where the others are."""
        return self._place.path / EVALUATIONS

    @property
    def _file(self) -> Path:
        return self._place.path / CERTIFICATE

    @property
    def _done(self) -> Path:
        return self._place.path / DONE

    # --- Reading ---

    def current(self) -> Evaluation | None:
        """The one that counts; None if there is none.

        Raises:
            RunError: it is damaged.
        """
        if not self._file.exists():
            return None
        # Deleted, for it would go on standing among the others.
        with remedied(f"restore it, or delete it and make it again with: twistlm evaluate {self._place.path}"):
            return Evaluation.read(self._file)

    def others(self) -> list[Evaluation]:
        """Those beside it, the oldest first; what is damaged is left out, with a warning."""
        found = []
        for path in sorted(self.folder.glob("*.json")):
            try:
                found.append(Evaluation.read(path))
            except DamagedError as error:
                logger.warning(coded("TW604", "an evaluation is left out: %s; restore it, or delete it"), error.found)
        return found

    def count_others(self) -> int:
        """How many those are, readable or not."""
        return sum(1 for _ in self.folder.glob("*.json"))

    def is_of_this_twist(self, evaluation: Evaluation) -> bool:
        """Whether the twist is still that which was evaluated, as far as that is known."""
        return evaluation.twist in (None, digest(self._twist))

    # --- Writing ---

    def add(self, certificates: Mapping[str, Certificate], settings: Mapping[str, Any], **more: Any) -> Path:
        """Keep what was found of the run's twist; nothing that is there is lost.

        What was found in the same way before, of something else, goes on standing beside it; and what is of the base
        model alone takes no place of what is of the twist.

        Args:
            certificates: by what they are of.
            settings: how they were made, as JSON values.
            **more: what else is to stand beside them, as JSON values.
        """
        made: dict[str, Any] = {
            "time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}",
            "settings": dict(settings),
            "twist": digest(self._twist),
            **{name: each.as_dict() for name, each in certificates.items()},
            **more,
        }
        there, about = self._readable(), as_type(About, as_json(made), str(self._file))
        known = {} if there is None else {name: each.as_dict() for name, each in there.certificates.items()}
        if is_like := there is not None and about.says_as(there):
            # One after the other, of the twist and of the base model.
            made = known | made
        if self._is_kept() or ("after" in known and "after" not in made):
            return self._place.save_json(self._free(made["time"]), made)
        if not is_like or any(_timeless(made[name]) != _timeless(each) for name, each in known.items()):
            self._make_room(made)
        return self._place.save_json(CERTIFICATE, made)

    def _readable(self) -> Evaluation | None:
        """The one that counts, if there is one that is whole."""
        with suppress(TwistError, RecursionError):
            return self.current()
        return None

    def _is_kept(self) -> bool:
        """Whether a sweep holds to the certificate: what cannot be read may say so, and hours of work be lost."""
        try:
            return self.is_done
        except RunError:
            return True

    def _make_room(self, new: Mapping[str, Any]) -> None:
        """Move the certificate that is there to the others, unless it says the same as the new one."""
        if not self._file.exists():
            return
        with suppress(TwistError):
            if self._content() == _timeless(new):
                return
        self._place.move(self._file, self._free(_time_of(self._file)))

    def _free(self, time: str) -> str:
        """A name among the others that nothing has yet."""
        stem = "".join(character for character in time if character.isalnum())[:20]
        names = (f"{stem}{more}.json" for more in ("", *(f"_{number:04}" for number in range(2, 10_000))))
        return next(f"{EVALUATIONS}/{name}" for name in names if not (self.folder / name).exists())

    # --- In a sweep ---

    @property
    def is_done(self) -> bool:
        """Whether the sweep that the run is of has finished it, and its certificate is there.

        Raises:
            StorageError: a folder is in the way of the mark.
            RunError: the mark is damaged.
        """
        if self._done.is_dir():
            raise StorageError(f"{self._done} is a folder, in the way of a file; remove it")
        return self._done.is_file() and load_typed(self._done, Mark).done and self._file.is_file()

    def finish(self, certificates: Mapping[str, Certificate]) -> None:
        """Keep what the sweep found, then say that the run is done: its certificate is the sweep's, and stays so."""
        made = {name: each.as_dict() for name, each in certificates.items()}
        self._make_room(as_json(made))
        self._place.save_json(CERTIFICATE, made)
        self._place.save_json(DONE, {"done": True, "sha256": self._hashes()})

    def finished(self) -> Evaluation:
        """What the sweep found.

        Raises:
            RunError: the results are no longer those that the sweep made, or damaged.
        """
        made, now = load_typed(self._done, Mark).sha256, self._hashes()
        for name in made:
            if made[name] != now.get(name):
                file = self._place.path / name
                raise RunError(f"{file} is not the one that its sweep made; delete {self._done} and sweep again")
        evaluation = Evaluation.read(self._file)
        if "after" not in evaluation.certificates:
            raise RunError(f"{self._file} has no certificate of the run's twist; delete it and sweep again")
        return evaluation

    def _content(self) -> Any:
        """What the certificate's file holds, without how long anything took.

        Raises:
            RunError: it is nested deeper than anything of ours.
        """
        try:
            return _timeless(load_json(self._file))
        except RecursionError as error:
            raise RunError(f"{self._file} is damaged ({error}); delete it and make it again") from error

    def _hashes(self) -> dict[str, str]:
        """Of what came out, whatever time it took."""
        content = json.dumps(self._content(), sort_keys=True).encode()
        hashes = {CERTIFICATE: hashlib.sha256(content).hexdigest()}
        return hashes | ({self._twist.name: digest(self._twist)} if self._twist.exists() else {})


def _time_of(path: Path) -> str:
    try:
        if time := Evaluation.read(path).time:
            return time
    except TwistError:
        # It is kept all the same.
        pass
    return f"{datetime.fromtimestamp(path.stat().st_mtime, UTC):%Y-%m-%dT%H:%M:%S}"


def _timeless(value: Any) -> Any:
    """JSON values without how long anything took."""
    if isinstance(value, dict):
        return {name: _timeless(each) for name, each in value.items() if not name.startswith("seconds")}
    return [_timeless(each) for each in value] if isinstance(value, list) else value
