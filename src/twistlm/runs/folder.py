"""The run folder: everything about a run, readable without twistlm, and safe to kill at any moment.

    config.json              what was asked, and the versions that did it
    metrics.jsonl            one JSON object per line: updates, evaluations, warnings
    samples.jsonl            samples with weights and scores, token by token
    base_samples.jsonl       draws of the base model, to compare with
    diagnostics.json         what SMC recorded when it drew the samples
    draws.safetensors        base draws and which are exact target samples
    checkpoint.safetensors   twist, optimiser, progress
    twist.safetensors        the finished twist
    certificate.json         bounds and divergences
    evaluations/             the same from other times, with their settings (`twistlm.runs.evaluations`)
    samples/                 samples that others have taken the place of, with what SMC recorded of them
    done.json                in a sweep: that its run is finished, and hashes of what came out

Every file is replaced as a whole, except metrics.jsonl: it grows line by line, and resuming drops what it will redo.
"""

import hashlib
import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor

from twistlm.core.errors import ConfigError, RunError, StorageError, TwistError
from twistlm.core.folders import is_occupied, writing
from twistlm.core.storage import (
    digest,
    load_json,
    load_lines,
    load_tensors,
    load_typed,
    parse_json,
    remove_temporary,
    save_json,
    save_lines,
    save_tensors,
)
from twistlm.runs.rows import check_metrics, check_sample

FORMAT = 1
SAMPLED = ("samples.jsonl", "base_samples.jsonl", "diagnostics.json")
SAMPLES = "samples"
POLICIES = ("refuse", "resume", "overwrite")


@dataclass(frozen=True)
class Done:
    """That a run of a sweep is finished, with the hashes of its files by name."""

    sha256: Mapping[str, str]


class RunFolder:
    """One run's files. Make it with `writing` or `open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity = _identity(path)

    @property
    def draws(self) -> Path:
        """Base draws and which are exact target samples."""
        return self.path / "draws.safetensors"

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoint(self) -> Path:
        """Everything that continuing needs."""
        return self.path / "checkpoint.safetensors"

    @property
    def twist(self) -> Path:
        """The finished twist."""
        return self.path / "twist.safetensors"

    @property
    def certificate(self) -> Path:
        """Bounds and divergences."""
        return self.path / "certificate.json"

    @property
    def evaluations(self) -> Path:
        """A folder of the same from other times."""
        return self.path / "evaluations"

    @property
    def _done(self) -> Path:
        return self.path / "done.json"

    @staticmethod
    def check(path: Path, exists: str) -> None:
        """Refuse early, before anything is loaded or computed, what `writing` would refuse.

        Raises:
            RunError: the folder exists and must not, or is no run folder.
            ConfigError: unknown policy.
        """
        if exists not in POLICIES:
            raise ConfigError(f"exists must be one of {', '.join(POLICIES)}, not {exists!r}")
        if path.is_file():
            raise RunError(f"{path} is a file; choose another folder with --out")
        if not is_occupied(path):
            return
        if exists == "refuse":
            raise RunError(
                f"{path} exists already; continue it with --resume, replace it with --overwrite, or choose another "
                "--out"
            )
        if not RunFolder.is_one(path):
            raise RunError(f"{path} is not a run folder, so it is left alone; choose another --out")

    @staticmethod
    def is_one(path: Path) -> bool:
        """Whether a run folder is there."""
        return (path / "config.json").is_file()

    @staticmethod
    @contextmanager
    def writing(path: Path, config: Mapping[str, Any], exists: str = "refuse") -> Iterator["RunFolder"]:
        """A folder for a run with this config, which nobody else can write to meanwhile.

        Args:
            path: the folder.
            config: JSON values; what makes the run what it is.
            exists: "refuse", "resume" (continue a run with the same config) or "overwrite": what is there stays as it
                is until all has gone well, and is then replaced. If that was killed, the same again continues it.

        Raises:
            RunError: it exists and must not, cannot be continued because it is of another config or version, or
                somebody else is writing it.
            StorageError: the system refuses, or files are gone at the end that should be there.
            ConfigError: unknown policy.
        """
        RunFolder.check(path, exists)
        asked = {"format": FORMAT, **json.loads(json.dumps(config))}
        whole = {**asked, "versions": versions()}
        with writing(path, replace=exists == "overwrite", goes_on=partial(_is_of, whole)) as draft:
            # Somebody else may have been quicker.
            RunFolder.check(path, exists)
            folder = RunFolder._begun(draft.path, path, asked, whole)
            remove_temporary(draft.path)
            yield folder
            folder._check_complete()
            draft.take_place()
            folder.path = draft.path

    @staticmethod
    def _begun(path: Path, place: Path, asked: Mapping[str, Any], whole: Mapping[str, Any]) -> "RunFolder":
        if not RunFolder.is_one(path):
            save_json(path / "config.json", whole)
            return RunFolder(path)
        folder = RunFolder.open(path)
        found = {k: v for k, v in folder.config.items() if k != "versions"}
        if found != asked:
            different = sorted(k for k in {*found, *asked} if found.get(k) != asked.get(k))
            raise RunError(
                f"{place} holds a run with another {', '.join(different)}; resume with the settings it was "
                "started with, or choose another --out"
            )
        return folder

    def _check_there(self) -> None:
        """Raises StorageError where the folder is no longer the one that was opened."""
        if self._identity is not None and _identity(self.path) != self._identity:
            raise StorageError(f"{self.path} was deleted or replaced while a run was being written to it; run it again")

    def _check_complete(self) -> None:
        """Raises StorageError where a finished run lacks a file."""
        self._check_there()
        wanted = [self.path / "config.json", self._metrics, self.checkpoint, self.twist]
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
        config = load_json(path / "config.json")
        if not isinstance(config, dict) or config.get("format") != FORMAT:
            found = config.get("format") if isinstance(config, dict) else None
            raise RunError(
                f"{path} was written in format {found} and this version reads format {FORMAT}; train it again"
            )
        return RunFolder(path)

    @property
    def config(self) -> dict[str, Any]:
        """What the run was asked."""
        config: dict[str, Any] = load_json(self.path / "config.json")
        return config

    # --- Metrics ---

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add a line; a kill can at most leave the last one incomplete."""
        self._check_there()
        try:
            with self._metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise StorageError(
                f"{self._metrics} cannot be written ({error.strerror}); continue with --resume"
            ) from error

    def metrics(self) -> list[dict[str, Any]]:
        """Every complete line.

        Raises:
            RunError: a line other than the last is not JSON, or something else is in one.
        """
        if not self._metrics.exists():
            return []
        lines, rows = load_lines(self._metrics), []
        for number, line in enumerate(lines, 1):
            where = f"{self._metrics} at line {number}"
            try:
                row = parse_json(line, where)
            except RunError:
                if number == len(lines):
                    break
                raise
            rows.append(check_metrics(row, where))
        return rows

    def truncate_metrics(self, count: int) -> list[dict[str, Any]]:
        """Keep the first `count` lines, those that a checkpoint knows; what came later will be done again."""
        self._check_there()
        rows = self.metrics()[:count]
        save_lines(self._metrics, rows)
        return rows

    # --- Weights ---

    def save_checkpoint(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Everything that continuing needs, in one file, atomically."""
        self._check_there()
        save_tensors(self.checkpoint, tensors, metadata)

    def load_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What `save_checkpoint` wrote, or None."""
        return load_tensors(self.checkpoint) if self.checkpoint.exists() else None

    def save_twist(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """The finished twist."""
        self._check_there()
        save_tensors(self.twist, tensors, metadata)

    def load_twist(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The finished twist.

        Raises:
            RunError: training has not finished.
        """
        if not self.twist.exists():
            raise RunError(f"{self.path} has no finished twist; continue training with --resume")
        return load_tensors(self.twist)

    # --- Results ---

    def save_samples(
        self,
        rows: Iterable[Mapping[str, Any]],
        diagnostics: Mapping[str, Any] | None,
        base_rows: Iterable[Mapping[str, Any]] | None = None,
    ) -> Path:
        """Keep samples, one JSON object each, and what SMC recorded of them; those that were there move to `samples/`.

        Args:
            rows: the samples.
            diagnostics: what SMC recorded.
            base_rows: draws of the base model to compare with, if they are not among the samples.
        """
        self._check_there()
        there = [path for name in SAMPLED if (path := self.path / name).exists()]
        if there:
            moment = datetime.fromtimestamp(there[0].stat().st_mtime, UTC)
            kept = f"{SAMPLES}/{moment:%Y%m%dT%H%M%S%f}"
            for path in there:
                self.move(path, f"{kept}/{path.name}")
        samples, base, recorded = (self.path / name for name in SAMPLED)
        save_lines(samples, rows)
        if base_rows is not None:
            save_lines(base, base_rows)
        if diagnostics is not None:
            save_json(recorded, diagnostics)
        return samples

    def samples(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows of samples, and of draws of the base model; none where there are none.

        Raises:
            RunError: a line is damaged.
        """
        samples, base = (self._sampled(self.path / name) for name in SAMPLED[:2])
        return samples, base

    def _sampled(self, path: Path) -> list[dict[str, Any]]:
        lines = enumerate(load_lines(path) if path.exists() else [], 1)
        places = [(line, f"{path} at line {number}") for number, line in lines]
        return [check_sample(parse_json(line, where), where) for line, where in places]

    @property
    def diagnostics(self) -> Path:
        """What SMC recorded when it drew the samples."""
        return self.path / SAMPLED[2]

    def move(self, path: Path, name: str) -> None:
        """Give a file another name in the folder, below a folder of its own."""
        self._check_there()
        try:
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            path.rename(self.path / name)
        except OSError as error:
            raise StorageError(f"{path} cannot be kept as {name} ({error.strerror}); see what is there") from error

    # --- In a sweep ---

    @property
    def is_done(self) -> bool:
        """Whether the sweep that this run is of has finished it, and its certificate is there.

        Raises:
            StorageError: a folder is in the way of the mark.
        """
        if self._done.is_dir():
            raise StorageError(f"{self._done} is a folder, in the way of a file; remove it")
        return self._done.is_file() and self.certificate.is_file()

    def mark_done(self) -> None:
        """Say that the run is finished: its certificate is the sweep's, and stays so."""
        self.save_json(self._done.name, {"sha256": self._hashes()})

    def _hashes(self) -> dict[str, str]:
        """Of what came out, whatever time it took."""
        found = json.dumps(timeless(load_json(self.certificate)), sort_keys=True).encode()
        hashes = {self.certificate.name: hashlib.sha256(found).hexdigest()}
        return hashes | ({self.twist.name: digest(self.twist)} if self.twist.exists() else {})

    def check_done(self) -> None:
        """Raises RunError where the results are no longer those that the sweep made."""
        found, now = load_typed(self._done, Done).sha256, self._hashes()
        for name in found:
            if found[name] != now.get(name):
                raise RunError(
                    f"{self.path / name} is not the one that its sweep made; delete {self._done} and sweep again"
                )

    def save_json(self, name: str, value: Any) -> Path:
        """A JSON file in the folder."""
        self._check_there()
        save_json(self.path / name, value)
        return self.path / name


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a folder from another of the same name; None if there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _is_of(config: Mapping[str, Any], path: Path) -> bool:
    """Whether a run with just this config is there."""
    try:
        return RunFolder.open(path).config == config
    except TwistError:
        return False


def timeless(value: Any) -> Any:
    """JSON values without how long anything took."""
    if isinstance(value, dict):
        return {name: timeless(each) for name, each in value.items() if not name.startswith("seconds")}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def versions() -> dict[str, str]:
    """Versions of everything that results depend on."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("twistlm", "torch", "transformers", "numpy", "safetensors"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
