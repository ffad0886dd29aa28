"""One run's files: who may write them, and those that training makes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from twistlm.core.errors import RunError, StorageError, TwistError
from twistlm.core.folders import writing
from twistlm.core.remote import publish
from twistlm.core.storage import as_type, load_tensors, remove_temporary, save_json, save_tensors, share
from twistlm.runs.folder import description, history, kept_twist, samples
from twistlm.runs.folder.description import AskedRun, Described, Outline, versions
from twistlm.runs.folder.evaluations import CERTIFICATE, DONE, EVALUATIONS, Evaluations
from twistlm.runs.folder.history import History
from twistlm.runs.folder.kept_twist import KeptTwist
from twistlm.runs.folder.place import Place, check_policy, otherwise, says
from twistlm.runs.folder.samples import SampleRow
from twistlm.runs.texts import TextSamples
from twistlm.sampling.diagnostics import Diagnostics
from twistlm.sampling.exact.collection import Collection, load
from twistlm.sampling.exact.origins import Origins
from twistlm.sampling.exact.provenance import identity

DRAWS, CHECKPOINT, TWIST, REPORT = "draws.safetensors", "checkpoint.safetensors", "twist.safetensors", "report.html"
# All that a command leaves in a run's folder (`place.check_own`).
NAMES = (
    *(description.NAME, history.NAME, DRAWS, CHECKPOINT, TWIST, CERTIFICATE, DONE, f"{EVALUATIONS}/*.json"),
    *(f"{folder}{name}" for folder in ("", f"{samples.EARLIER}/*/") for name in samples.EVERY),
    *(REPORT, "report/*.png", "report/*.pdf"),
)


class RunFolder(Place):
    """One run's files. Make it with `writing` or `open`.

    Attributes:
        seen: where the draws come from that the twist which is trained here sees; recorded with it.
    """

    seen = Origins()
    # What tells the twist that was read or written here from another that took its place.
    _stamp: tuple[int, int, int] | None = None

    @property
    def draws(self) -> Path:
        """Base draws and which are exact target samples."""
        return self.path / DRAWS

    @property
    def checkpoint(self) -> Path:
        """Everything that continuing needs."""
        return self.path / CHECKPOINT

    @property
    def twist(self) -> Path:
        """The finished twist."""
        return self.path / TWIST

    @property
    def report(self) -> Path:
        """A page that shows all of it."""
        return self.path / REPORT

    @property
    def is_trained(self) -> bool:
        """Whether training has finished."""
        return self.twist.exists()

    @property
    def evaluations(self) -> Evaluations:
        """What was found of the twist."""
        return Evaluations(self, self.twist)

    @staticmethod
    def check(path: Path, exists: str) -> None:
        """Refuse early, before anything is loaded or computed, what `writing` would refuse.

        Raises:
            RunError: the folder exists and must not, is no run folder, or holds what is not a run's and would be lost.
            StorageError: it cannot be told whether it is one.
            ConfigError: unknown policy.
        """
        check_policy(path, exists, RunFolder.is_ours, "a run folder", NAMES)

    @staticmethod
    def is_ours(path: Path) -> bool:
        """Whether a run folder is there for certain, of whatever format: a language model's has a config.json, too.

        Raises:
            RunError: its config.json is corrupt, so that nobody can tell.
            StorageError: the system refuses to say.
        """
        return says(path / description.NAME, {"format": int, "run": dict})

    @staticmethod
    def is_one(path: Path) -> bool:
        """Whether there is something to be read as a run folder; a language model's folder has this file too."""
        return (path / description.NAME).is_file()

    @staticmethod
    def is_of(path: Path, asked: AskedRun) -> bool:
        """Whether a run that was asked just this, and made by just these versions, is there."""
        try:
            return description.read(path) == _whole(asked)
        except TwistError:
            return False

    @staticmethod
    def has_begun(path: Path) -> bool:
        """Whether a run has been trained there, at least in part, which no other folder looks like."""
        return (path / history.NAME).exists()

    @staticmethod
    @contextmanager
    def writing(path: Path, asked: AskedRun, exists: str = "refuse") -> Iterator["RunFolder"]:
        """A folder for the run that is asked for, which nobody else can write to meanwhile.

        Args:
            path: the folder.
            asked: what makes the run what it is.
            exists: "refuse", "resume" (continue a run that was asked the same) or "overwrite": what is there stays as
                it is until all has gone well, and is then replaced. If that was killed, the same again continues it.

        Raises:
            RunError: it exists and must not, cannot be continued because it was asked otherwise or is of another
                version, or somebody else is writing it.
            StorageError: the system refuses, or files are gone at the end that should be there.
            ConfigError: unknown policy.
        """
        RunFolder.check(path, exists)
        with writing(path, replace=exists == "overwrite", goes_on=partial(RunFolder.is_of, asked=asked)) as draft:
            # Somebody else may have been quicker.
            RunFolder.check(path, exists)
            folder = RunFolder._begun(draft.path, path, _whole(asked))
            remove_temporary(draft.path)
            yield folder
            folder._check_complete()
            draft.take_place()
            folder.path = draft.path

    @staticmethod
    def _begun(path: Path, place: Path, whole: Mapping[str, Any]) -> "RunFolder":
        if not RunFolder.is_one(path):
            save_json(path / description.NAME, whole)
            return RunFolder(path)
        asked, there = ({k: v for k, v in each.items() if k != "versions"} for each in (whole, description.read(path)))
        # Folders of older versions do not say which draws were given (`share_draws`), what a twist began as, nor what
        # the target consists of.
        different = otherwise(there, asked, since=("draws", "start", "fingerprint"))
        if different == ["draws"]:
            raise _other_draws(place)
        if different == ["fingerprint"]:
            raise RunError(
                f"{place} holds a run with a model or potential of other content, though of the same names; resume "
                "with what it was started with, or choose another --out"
            )
        if different:
            before, now = ({k: v for k, v in each.items() if k in different} for each in (there, asked))
            raise RunError(
                f"{place} holds a run with another {', '.join(different)} ({description.differences(before, now)}); "
                "resume with the settings it was started with, or choose another --out"
            )
        return RunFolder(path)

    @staticmethod
    def keep(
        path: Path, asked: AskedRun, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], seen: Origins
    ) -> "RunFolder":
        """A folder with what using a run needs, and nothing of its training.

        Args:
            path: the folder.
            asked: what made the run.
            tensors: the twist.
            metadata: as for `save_twist`.
            seen: where the draws come from that the twist has seen.
        """
        save_json(path / description.NAME, _whole(asked))
        folder = RunFolder(path)
        folder.seen = seen
        folder.save_twist(tensors, metadata)
        return folder

    def _check_complete(self) -> None:
        """Raises StorageError where a finished run lacks a file."""
        self.check_there()
        wanted = [self.path / description.NAME, self.path / history.NAME, self.checkpoint, self.twist]
        if missing := [file.name for file in wanted if not file.is_file()]:
            raise StorageError(
                f"{self.path} lacks {', '.join(missing)}, deleted while the run was being written; run it again"
            )

    @staticmethod
    def open(path: Path) -> "RunFolder":
        """An existing run.

        Raises:
            RunError: it is no run folder, or corrupt, or from another version.
        """
        description.read(path)
        return RunFolder(path)

    # --- What was asked ---

    def load_description(self) -> Described:
        """All of it, every setting being known.

        Raises:
            RunError: the file says something else.
        """
        values = description.read(self.path)
        return as_type(Described, values, str(self.path / description.NAME))

    def load_outline(self) -> Outline:
        """What a reader is told of it; the settings may be another version's.

        Raises:
            RunError: the file says something else.
        """
        return Outline.of(description.read(self.path), self.path / description.NAME)

    # --- Metrics ---

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add a line; a kill can at most leave the last one incomplete."""
        self.check_there()
        history.append(self.path, row)

    def metrics(self) -> list[dict[str, Any]]:
        """Every complete line.

        Raises:
            RunError: a line other than the last is not JSON, or something else is in one.
        """
        return history.read(self.path)

    def truncate_metrics(self, count: int) -> list[dict[str, Any]]:
        """Keep the first `count` lines, those that a checkpoint knows; what came later will be done again."""
        self.check_there()
        return history.truncate(self.path, count)

    def load_history(self) -> History:
        """What the lines say.

        Raises:
            RunError: one is damaged.
        """
        return History.of(self.metrics(), str(self.path / history.NAME))

    # --- Results ---

    @contextmanager
    def adding(self) -> Iterator[None]:
        """As for any folder, as long as it has the twist that was read or written here.

        Raises:
            RunError: it has another by now, or somebody else is writing it.
        """
        with super().adding():
            if self._stamp not in (None, _stamp(self.twist)):
                raise RunError(f"{self.url or self.path} has another twist by now; open it again with Run.load")
            yield

    # --- Weights ---

    def save_checkpoint(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Everything that continuing needs, in one file, atomically."""
        self.check_there()
        save_tensors(self.checkpoint, tensors, metadata)
        publish(self.path)

    def load_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What `save_checkpoint` wrote, or None."""
        return load_tensors(self.checkpoint) if self.checkpoint.exists() else None

    def save_twist(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """The finished twist."""
        self.check_there()
        kept_twist.save(self.twist, tensors, metadata, self.seen)
        self._stamp = _stamp(self.twist)

    def load_twist(self) -> KeptTwist:
        """The finished twist, and what is recorded with it.

        Raises:
            RunError: training has not finished, or the file says something else.
        """
        if not self.twist.exists():
            raise RunError(f"{self.path} has no finished twist; continue training with --resume")
        self._stamp = _stamp(self.twist)
        return kept_twist.load(self.twist)

    # --- Draws and samples ---

    @staticmethod
    def given_draws(path: Path) -> Path | None:
        """The draws that the run in a folder was given when it began; None if it was given none, or does not say so.

        Raises:
            RunError: it is corrupt, or they are gone.
        """
        if not RunFolder.is_one(path) or description.read(path).get("draws") is None:
            return None
        draws = RunFolder(path).draws
        if not draws.exists():
            raise RunError(f"{draws} is gone, the draws that the run was given; give the same file again with --draws")
        return draws

    def share_draws(self, source: Path, given: Collection) -> None:
        """Make the draws those that are given, in a file, unless they are; and say so.

        Raises:
            RunError: there are others.
        """
        if not self.draws.exists():
            share(source, self.draws)
        elif not self.draws.samefile(source) and identity(load(self.draws, given.target)) != identity(given):
            raise _other_draws(self.path)
        said = description.read(self.path)
        if said.get("draws") is None:
            save_json(self.path / description.NAME, {**said, "draws": identity(given)})

    def save_samples(self, drawn: TextSamples | Mapping[str, TextSamples], base: TextSamples | None = None) -> Path:
        """Keep samples, and what SMC recorded of them; those that were there move to `samples/`.

        Args:
            drawn: samples of one sampler, or of several by their names.
            base: draws of the base model to compare with, if they are not among the samples.
        """
        return samples.save(self, drawn, base)

    def load_samples(self) -> tuple[list[SampleRow], list[SampleRow]]:
        """Samples, and draws of the base model; none where there are none.

        Raises:
            RunError: a line is damaged.
        """
        return samples.load(self.path)

    def save_prompt_samples(self, drawn: Mapping[str, Sequence[TextSamples]]) -> Path:
        """Keep samples at several prompts, by what drew them; those that were there move to `samples/`."""
        return samples.save_at_prompts(self, drawn)

    def load_prompt_samples(self) -> list[SampleRow]:
        """Samples at several prompts; none where there are none.

        Raises:
            RunError: a line is damaged.
        """
        return samples.load_at_prompts(self.path)

    def load_diagnostics(self) -> Diagnostics | None:
        """What SMC recorded when it drew the samples; None if there is nothing.

        Raises:
            RunError: it is damaged.
        """
        return samples.load_diagnostics(self.path)


def _stamp(file: Path) -> tuple[int, int, int] | None:
    with suppress(OSError):
        status = file.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns
    return None


def _other_draws(place: Path) -> RunError:
    return RunError(
        f"{place} holds a run that began with other base draws; leave out --draws to resume with those, or choose "
        "another --out"
    )


def _whole(asked: AskedRun) -> dict[str, Any]:
    """What config.json says of a run that is begun now."""
    return {**asked.as_dict(), "versions": versions()}
