"""Evaluations as files: each in evaluations/, the last in certificate.json, and in done.json what a sweep found.

That a sweep has finished its run is said by done.json alone, which is written last. Tables are made of what it holds,
so that a later evaluation of the same run changes none.
"""

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from twistlm.certificates.certificate import Certificate
from twistlm.core.advice import coded
from twistlm.core.errors import DamagedError, RunError, StorageError, TwistError
from twistlm.core.storage import as_json, as_type, digest, load_typed, remedied
from twistlm.runs.folder.place import Place
from twistlm.sampling.description import PromptFields

logger = logging.getLogger("twistlm")

CERTIFICATE, EVALUATIONS, DONE = "certificate.json", "evaluations", "done.json"


@dataclass(frozen=True)
class Evaluation:
    """Certificates that were made together.

    Attributes:
        certificates: by what they are of: "before" training, "after", …
        settings: how, as JSON values.
        twist: hash of the twist's file.
        time: when, in UTC; "" for what a sweep found.
        prompts: where, of a set.
        notes: what else is to stand in the file, as JSON values.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (pydantic's, and no field)

    certificates: Mapping[str, Certificate]
    settings: Mapping[str, Any]
    twist: str
    time: str = ""
    prompts: tuple[PromptFields, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)

    def is_like(self, other: "Evaluation") -> bool:
        """Whether another was made in the same way, of the same twist at the same prompts."""
        return (self.settings, self.twist, self.prompts) == (other.settings, other.twist, other.prompts)


class Evaluations:
    """The evaluations of a run.

    Args:
        place: the run folder.
        twist: its file of the twist, whose hash stands in each.
    """

    def __init__(self, place: Place, twist: Path) -> None:
        self._place, self._twist = place, twist

    @property
    def folder(self) -> Path:
        """Where all of them are."""
        return self._place.path / EVALUATIONS

    @property
    def _file(self) -> Path:
        return self._place.path / CERTIFICATE

    @property
    def _done(self) -> Path:
        return self._place.path / DONE

    @property
    def _files(self) -> list[Path]:
        return [path for path in (self._done, *sorted(self.folder.glob("*.json"))) if path.is_file()]

    # --- Reading ---

    def current(self) -> Evaluation | None:
        """The last; None if there is none.

        Raises:
            RunError: it is damaged.
        """
        if not self._file.exists():
            return None
        with remedied(f"restore it, or delete it and make it again with: twistlm evaluate {self._place.path}"):
            return load_typed(self._file, Evaluation)

    def others(self) -> list[Evaluation]:
        """Those that were made otherwise than it, the oldest first; damaged ones are left out, with a warning."""
        found, current = [], self._readable()
        for path in self._files:
            try:
                found.append(load_typed(path, Evaluation))
            except DamagedError as error:
                logger.warning(coded("TW604", "an evaluation is left out: %s; restore it, or delete it"), error.found)
        return [each for each in found if current is None or not each.is_like(current)]

    def is_of_this_twist(self, evaluation: Evaluation) -> bool:
        """Whether the twist is still that which was evaluated."""
        return evaluation.twist == digest(self._twist)

    # --- Writing ---

    def add(self, certificates: Mapping[str, Certificate], settings: Mapping[str, Any], **more: Any) -> Path:
        """Keep what was found of the run's twist; returns the file that it is in.

        What was found in the same way before, of the twist or of the base model, goes into the same file. What is of
        the base model alone does not become the last if the last is of the twist, made otherwise.

        Args:
            certificates: by what they are of.
            settings: how they were made, as JSON values.
            **more: prompts or notes, as JSON values.
        """
        made, last = self._made(certificates, settings, **more, time=_now()), self._readable()
        if last is not None and made.is_like(last):
            made = self._made({**last.certificates, **certificates}, settings, **more, time=made.time)
        file = self._place.save_json(self._free(made.time), made)
        if last is not None and "after" in last.certificates and "after" not in made.certificates:
            return file
        return self._replace(made)

    def publish(self, certificate: Certificate, settings: Mapping[str, Any], **more: Any) -> None:
        """The same of one certificate of the twist in a folder that has no evaluations, without a copy there."""
        self._replace(self._made({"after": certificate}, settings, **more, time=_now()))

    def _made(self, certificates: Mapping[str, Certificate], settings: Mapping[str, Any], **more: Any) -> Evaluation:
        fields = {"certificates": certificates, "settings": settings, "twist": digest(self._twist), **more}
        return as_type(Evaluation, as_json(fields), str(self._file))

    def _readable(self) -> Evaluation | None:
        """The last, if it is whole."""
        with suppress(TwistError):
            return self.current()
        return None

    def _replace(self, made: Evaluation) -> Path:
        """Make it the last. A certificate.json that no other file repeats moves to them: nothing is lost."""
        file = self._file
        if file.exists() and not (file.is_file() and digest(file) in map(digest, self._files)):
            self._place.move(file, self._free(_time(file.stat().st_mtime)))
        return self._place.save_json(CERTIFICATE, made)

    def _free(self, time: str) -> str:
        """A name among the others that nothing has yet."""
        stem = "".join(character for character in time if character.isalnum())
        names = (f"{stem}{more}.json" for more in ("", *(f"_{number:04}" for number in range(2, 10_000))))
        return next(f"{EVALUATIONS}/{name}" for name in names if not (self.folder / name).exists())

    # --- In a sweep ---

    @property
    def is_done(self) -> bool:
        """Whether the sweep that the run is of has finished it.

        Raises:
            StorageError: a folder is in the way of the mark.
        """
        if self._done.is_dir():
            raise StorageError(f"{self._done} is a folder, in the way of a file; remove it")
        return self._done.is_file()

    def finish(self, certificates: Mapping[str, Certificate]) -> None:
        """Keep what the sweep found of the run, which is done now."""
        made = self._made(certificates, {})
        self._replace(made)
        self._place.save_json(DONE, made)

    def finished(self) -> Evaluation:
        """What the sweep found.

        Raises:
            RunError: it is damaged, or the twist is no longer that of the sweep.
        """
        with remedied("restore it, or delete it and sweep again"):
            found = load_typed(self._done, Evaluation)
        if not self.is_of_this_twist(found):
            raise RunError(f"{self._twist} is not the one that its sweep made; delete {self._done} and sweep again")
        if "after" not in found.certificates:
            raise RunError(f"{self._done} has no certificate of the run's twist; delete it and sweep again")
        return found


def _now() -> str:
    return _time(datetime.now(UTC).timestamp())


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"
