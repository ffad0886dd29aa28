"""A place in a store and its working copy on this machine.

Everything is done in the working copy, as in any folder. Each file that has been written whole there is published
before anything else happens, so the store goes through the states of the folder, and what a kill leaves there can be
continued as what it leaves here. Files of lines that grow (`.jsonl`) go first: others count their lines, and they refer
to nothing.

What takes the place of something else is built beside it, in the store too, as `.NAME.new`. The one object `.NAME.swap`
then says that this is what counts; whoever opens the place for writing finishes what that has begun, as often as it
takes, and readers read the new one from then on.
"""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from twistlm.core.advice import coded
from twistlm.core.errors import RunError
from twistlm.core.storage import cache_folder, load_json, save_json
from twistlm.core.stores import Store

logger = logging.getLogger("twistlm")

# What was published of a file, or fetched: what tells the object from its other versions, and the file's size and time.
Known = tuple[str | None, int, int]


def copies() -> Path:
    """Where working copies are."""
    return cache_folder() / "places"


class Mirror:
    """A place in a store and its working copy.

    Args:
        url: of the place.

    Raises:
        ConfigError: a package is missing, or the URL names no place.

    Attributes:
        home: a folder for what is in one folder of the store.
        local: the working copy in it.
        draft: where what is to take its place is built.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        parent, _, self.name = self.url.rpartition("/")
        self.home = (copies() / sha256(parent.encode()).hexdigest()[:16]).resolve()
        self.local, self.draft = self.home / self.name, self.home / f".{self.name}.new"
        # What it has found out about itself, beside it.
        self.lock = self.home / f".{self.name}.place.lock"
        self.writer = self.home / f".{self.name}.place.json"
        self._index = self.home / f".{self.name}.place"
        self._swap, self._committed = f".{self.name}.swap", False

    @cached_property
    def store(self) -> Store:
        """The store; reading packages and credentials when it is needed."""
        return Store(self.url)

    @property
    def roots(self) -> tuple[Path, Path]:
        """What of the working copy is published."""
        return self.local, self.draft

    # --- What is known of the two sides ---

    def _relative(self, path: Path) -> str:
        return path.absolute().relative_to(self.home).as_posix()

    def _known(self, folder: Path) -> dict[str, Known]:
        """What was published of the files in a folder, or fetched, by their names."""
        with contextlib.suppress(RunError):
            return {name: (token, size, at) for name, (token, size, at) in load_json(self._file_of(folder)).items()}
        return {}

    def _file_of(self, folder: Path) -> Path:
        return self._index / self._relative(folder) / "known.json"

    def _know(self, path: Path, token: str | None) -> None:
        save_json(self._file_of(path.parent), self._known(path.parent) | {path.name: (token, *_stamp(path))})

    def _forget(self, path: Path) -> None:
        known = self._known(path.parent)
        if known.pop(path.name, None) is not None:
            save_json(self._file_of(path.parent), known)

    def _all_known(self, root: Path) -> dict[str, Known]:
        """The same of everything at and below a root, by names as the store has them."""
        folders = {root.parent} | {
            self.home / each.parent.relative_to(self._index)
            for each in (self._index / self._relative(root)).rglob("known.json")
        }
        known = {folder: self._known(folder) for folder in folders}
        found = {self._relative(folder / name): each for folder in known for name, each in known[folder].items()}
        return {name: each for name, each in found.items() if _is_in(name, self._relative(root))}

    def _changed(self, path: Path) -> bool:
        known = self._known(path.parent).get(path.name)
        return known is None or known[1:] != _stamp(path)

    # --- Publishing ---

    def publish(self, path: Path) -> None:
        """A file that is whole, after the lines beside it.

        Raises:
            StorageError: the store refuses.
        """
        beside = [each for each in path.parent.glob("*.jsonl") if each != path] if path.parent != self.home else []
        for each in (*beside, path):
            if each.is_file() and not _is_hidden(self._relative(each), self.draft.name) and self._changed(each):
                self._know(each, self.store.put(each, self._relative(each)))

    def publish_all(self) -> None:
        """All that has changed: lines first, then what was written first.

        Raises:
            StorageError: the store refuses.
        """
        for path in sorted(self._files(), key=lambda path: (path.suffix != ".jsonl", path.stat().st_mtime_ns)):
            if self._changed(path):
                self.publish(path)

    def _files(self) -> Iterator[Path]:
        for root in self.roots:
            for path in [root, *(root.rglob("*") if root.is_dir() else ())]:
                if path.is_file() and not _is_hidden(self._relative(path), self.draft.name):
                    yield path

    def remove(self, path: Path) -> None:
        """What is there no longer.

        Raises:
            StorageError: the store refuses.
        """
        if self._committed and path == self.draft:
            # Whatever became of it here: there it counts, and is put in its place by whoever opens it next.
            return
        name = self._relative(path)
        gone = [each for each in self._all_known(path) if not (self.home / each).exists()]
        self.store.remove(gone)
        for each in gone:
            self._forget(self.home / each)
        if not path.exists():
            shutil.rmtree(self._index / name, ignore_errors=True)

    # --- Taking a place ---

    def commit(self) -> None:
        """Say in the store that the draft, which is whole, is what counts.

        Raises:
            StorageError: the store refuses; nothing has changed then.
        """
        self.publish_all()
        names = sorted(self.store.files(self.draft.name))
        self._committed = True
        self.store.write(self._swap, json.dumps(names).encode())

    def finish(self) -> None:
        """Put the draft in its place in the store, if it was said to count.

        Raises:
            StorageError: the store refuses; opening the place for writing finishes it.
        """
        said = self.store.read(self._swap)
        if said is None:
            return
        names = {name: self._placed(name) for name in json.loads(said)}
        for name, placed in names.items():
            self.store.copy(name, placed)
        self.store.remove(sorted(self.store.files(self.name).keys() - set(names.values())))
        self.store.remove([self._swap])
        self.store.remove(names)
        self._committed = False

    def swapped(self) -> None:
        """What was the draft here is in its place here and in the store.

        Raises:
            StorageError: the store refuses.
        """
        for root in self.roots:
            shutil.rmtree(self._index / self._relative(root), ignore_errors=True)
        for name, token in self.store.files(self.name).items():
            if (path := self.home / name).is_file():
                self._know(path, token)

    def _placed(self, name: str) -> str:
        return self.name + name.removeprefix(self.draft.name)

    # --- Fetching ---

    def fetch(self, *, draft: bool) -> None:
        """Make the working copy what the store has; only what differs is read.

        Where nobody else has written since, the working copy stays: it may be ahead, by what could not be published.

        Args:
            draft: what is being built beside it, too; else what counts alone.

        Raises:
            StorageError: the store refuses.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        committed = None if draft else self.store.read(self._swap)
        there = self._listing(committed is not None)
        if draft:
            there |= {name: (name, token) for name, token in self.store.files(self.draft.name).items()}
        roots = self.roots if draft else (self.local,)
        known = {name: each for root in roots for name, each in self._all_known(root).items()}
        tokens = {name: token for name, (_, token) in there.items()}
        if None in tokens.values() or tokens != {name: token for name, (token, *_) in known.items()}:
            self._follow(there, roots)
        for name, (source, token) in there.items():
            if not (self.home / name).is_file():
                self._get(source, self.home / name, token)
        if not draft and self.store.read(self._swap) != committed:
            # Another took its place meanwhile.
            self.fetch(draft=draft)

    def _listing(self, from_draft: bool) -> dict[str, tuple[str, str | None]]:
        """What is to be in the working copy, by its name: where it is in the store, and in which version."""
        found = self.store.files(self.draft.name if from_draft else self.name)
        named = {self._placed(name) if from_draft else name: (name, token) for name, token in found.items()}
        return {name: each for name, each in named.items() if not _is_hidden(name, self.draft.name)}

    def _follow(self, there: dict[str, tuple[str, str | None]], roots: tuple[Path, ...]) -> None:
        """Someone else has written: what is here is replaced by what is there."""
        here = [path for path in self._files() if any(_is_in(self._relative(path), root.name) for root in roots)]
        if ahead := [path.name for path in here if self._changed(path)]:
            logger.warning(
                coded("TW502", "%s has been written from elsewhere: what was not published from here is dropped (%s)"),
                *(self.url, ", ".join(sorted(ahead))),
            )
        for path in here:
            if self._relative(path) not in there:
                path.unlink()
                self._forget(path)
        for name, (source, token) in there.items():
            path = self.home / name
            known = self._known(path.parent).get(path.name)
            if token is None or not path.is_file() or known != (token, *_stamp(path)):
                self._get(source, path, token)

    def _get(self, source: str, path: Path, token: str | None) -> None:
        if path.is_dir():
            shutil.rmtree(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            self.store.get(source, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        self._know(path, token)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _is_in(name: str, root: str) -> bool:
    return name == root or name.startswith(f"{root}/")


def _is_hidden(name: str, draft: str) -> bool:
    """Whether a name is of locks, of what is half-written, or of what is known: nothing that is published."""
    first, *rest = name.split("/")
    return (first.startswith(".") and first != draft) or any(part.startswith(".") for part in rest)
