"""A folder that files are written to, as long as it is the one that was opened."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from twistlm.core.errors import ConfigError, RunError, StorageError
from twistlm.core.folders import check_held, is_occupied, writing
from twistlm.core.remote import opened
from twistlm.core.storage import load_json, remedied, save_json

POLICIES = ("refuse", "resume", "overwrite")


class Place:
    """A folder, known by more than its name: where another has taken its place, nothing is written.

    Attributes:
        path: where it is; it may not be there yet.
        url: of the place in a store that it is the working copy of; None for a folder of this machine.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url: str | None = None
        self._identity = _identity(path)

    def check_there(self) -> None:
        """Raises StorageError where the folder is no longer the one that was opened, or another's to write by now."""
        if self._identity is not None and _identity(self.path) != self._identity:
            raise StorageError(f"{self.path} was deleted or replaced while a run was being written to it; run it again")
        check_held(self.path)

    @contextmanager
    def adding(self) -> Iterator[None]:
        """Hold the folder while results are added to it; where it is in a store, they are there by the end.

        Raises:
            RunError: somebody else is writing it.
            StorageError: it was deleted or replaced, or the system refuses.
        """
        with opened(self.url or self.path, write=True):
            self.check_there()
            with writing(self.path):
                yield

    def save_json(self, name: str, value: Any) -> Path:
        """A JSON file in the folder, written atomically; returns its path.

        Raises:
            RunError: a link on its way leads elsewhere.
            StorageError: the folder was deleted or replaced, or the system refuses.
        """
        self.check_there()
        self._check_links(name)
        save_json(self.path / name, value)
        return self.path / name

    def move(self, path: Path, name: str) -> None:
        """Give a file another name in the folder, below a folder of its own. Raises as `save_json` does."""
        self.check_there()
        self._check_links(name)
        try:
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            path.rename(self.path / name)
        except OSError as error:
            raise StorageError(f"{path} cannot be kept as {name} ({error.strerror}); see what is there") from error

    def _check_links(self, name: str) -> None:
        for folder in (self.path / parent for parent in Path(name).parents if parent != Path()):
            check_no_link(folder)


def check_no_link(folder: Path) -> None:
    """Refuse a folder within a run's that leads elsewhere: what is there would be replaced.

    Raises:
        RunError: it is a link.
    """
    if folder.is_symlink():
        raise RunError(f"{folder} is a link, and files where it leads would be replaced; delete the link")


def check_policy(path: Path, exists: str, is_ours: Callable[[Path], bool], kind: str, names: Iterable[str]) -> None:
    """Refuse early what would be refused when the folder is written, by what is to be done if it exists.

    Args:
        path: the folder.
        exists: one of `POLICIES`.
        is_ours: whether a folder that is there is of the `kind`, and may be continued or replaced.
        kind: what an error calls such folders.
        names: of what may be in one (`check_own`).

    Raises:
        RunError: the folder exists and must not, something else is there, or is in it and would be deleted with it.
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
            f"{path} exists already; continue it with --resume, replace it with --overwrite, or choose another --out"
        )
    if not is_ours(path):
        raise RunError(f"{path} is not {kind}, so it is left alone; choose another --out")
    if exists == "overwrite":
        check_own(path, names, kind)


def check_own(path: Path, names: Iterable[str], kind: str) -> None:
    """Refuse to replace a folder with something in it that is not of its kind, and would be deleted with it.

    Args:
        path: the folder.
        names: patterns of what is, relative to it, as those of `Path.match`: ``report/*.png``.
        kind: what an error calls such folders.

    Raises:
        RunError: something else is there, be it in a folder below.
        StorageError: it cannot be looked into.
    """
    try:
        other = _foreign(path, list(names))
    except OSError as error:
        raise StorageError(f"{path} cannot be looked into ({error.strerror}); choose another --out") from error
    if other is not None:
        raise RunError(
            f"{path} holds {other.relative_to(path)}, which is not of {kind} and would be deleted; move it, or choose "
            "another --out"
        )


def _foreign(folder: Path, names: list[str]) -> Path | None:
    """The first thing in a folder, or below, that has none of the names. What is hidden does not count (.DS_Store)."""
    for each in sorted(folder.iterdir()):
        if each.name.startswith("."):
            continue
        parts = [name.partition("/") for name in names]
        below = [rest for first, _, rest in parts if fnmatchcase(each.name, first)]
        is_folder = each.is_dir() and not each.is_symlink()
        if not (any(below) if is_folder else "" in below):
            return each
        if is_folder and (other := _foreign(each, [rest for rest in below if rest])) is not None:
            return other
    return None


def says(file: Path, fields: Mapping[str, type]) -> bool:
    """Whether a file is there and is a JSON object with such fields, as only one of ours has: a name is anybody's.

    Raises:
        RunError: it is corrupt, so that nobody can tell.
        StorageError: it cannot be read.
    """
    values = load_description(file) if file.is_file() else None
    return isinstance(values, dict) and all(isinstance(values.get(name), kind) for name, kind in fields.items())


def load_description(file: Path) -> Any:
    """The JSON values of the file that tells a folder of ours from others.

    Raises:
        RunError: there is none, or it is corrupt.
        StorageError: it cannot be read.
    """
    # Not to be started over with --overwrite: nothing says any more whose the folder is.
    with remedied("restore it, or delete the folder and start over"):
        return load_json(file)


def otherwise(there: Mapping[str, Any], asked: Mapping[str, Any], since: Iterable[str] = ("fingerprint",)) -> list[str]:
    """Names of what a folder was asked otherwise.

    "fingerprint", of what the target consists of, comes alone: a target of other names has another one, too.

    Args:
        there: what its file says was asked.
        asked: what is asked now.
        since: names of what folders of older versions do not say.
    """
    before = {name: asked.get(name) for name in since} | dict(there)
    different = sorted(name for name in {*before, *asked} if before.get(name) != asked.get(name))
    return [name for name in different if name != "fingerprint"] or different


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a folder from another of the same name; None if there is none."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
