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

Every file is replaced as a whole, except metrics.jsonl: it grows line by line, and resuming drops what it will redo.
"""

import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor

from twistlm.errors import ConfigError, RunError, StorageError, TwistError
from twistlm.folders import is_occupied, writing
from twistlm.storage import load_json, load_tensors, remove_temporary, save_json, save_tensors, save_text

FORMAT = 1
POLICIES = ("refuse", "resume", "overwrite")


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
    def _checkpoint(self) -> Path:
        return self.path / "checkpoint.safetensors"

    @property
    def _twist(self) -> Path:
        return self.path / "twist.safetensors"

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
        wanted = [self.path / "config.json", self._metrics, self._checkpoint, self._twist]
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
            RunError: a line other than the last is not JSON.
        """
        if not self._metrics.exists():
            return []
        lines = self._metrics.read_text(encoding="utf-8").splitlines()
        rows = []
        for number, line in enumerate(lines):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                if number == len(lines) - 1:
                    break
                raise RunError(
                    f"{self._metrics} is corrupt at line {number + 1} ({error}); start over with --overwrite"
                ) from error
        return rows

    def truncate_metrics(self, count: int) -> list[dict[str, Any]]:
        """Keep the first `count` lines, those that a checkpoint knows; what came later will be done again."""
        self._check_there()
        rows = self.metrics()[:count]
        write_lines(self._metrics, rows)
        return rows

    # --- Weights ---

    def save_checkpoint(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Everything that continuing needs, in one file, atomically."""
        self._check_there()
        save_tensors(self._checkpoint, tensors, metadata)

    def load_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What `save_checkpoint` wrote, or None."""
        return load_tensors(self._checkpoint) if self._checkpoint.exists() else None

    def save_twist(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """The finished twist."""
        self._check_there()
        save_tensors(self._twist, tensors, metadata)

    def load_twist(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The finished twist.

        Raises:
            RunError: training has not finished.
        """
        if not self._twist.exists():
            raise RunError(f"{self.path} has no finished twist; continue training with --resume")
        return load_tensors(self._twist)

    # --- Results ---

    def save_samples(self, rows: Iterable[Mapping[str, Any]], name: str = "samples.jsonl") -> Path:
        """One JSON object per sample."""
        self._check_there()
        write_lines(self.path / name, rows)
        return self.path / name

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


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, atomically."""
    save_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def versions() -> dict[str, str]:
    """Versions of everything that results depend on."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("twistlm", "torch", "transformers", "numpy", "safetensors"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
