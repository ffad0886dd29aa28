"""Places that are URLs: fetched into a working copy on this machine, and published from it, by fsspec.

A writer publishes what has changed at its checkpoints and at the end. Meanwhile `.NAME.writer` stands beside the place
and says who it is; a second writer is refused. What could not be published stays in the working copy, and the next
writer on this machine goes on with it.
"""

import filecmp
import json
import logging
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from twistlm.core.advice import coded
from twistlm.core.errors import ConfigError, RunError, StorageError, TwistError

logger = logging.getLogger("twistlm")

# `Path` makes one slash of two; a scheme of one letter is a drive.
URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
HERE = ("file", "local")


def url_of(place: str | Path) -> str | None:
    """The URL that a place is, also one that went through `Path`; None for a path on this machine."""
    found = URL.fullmatch(str(place))
    if found is None or found[1].lower() in HERE:
        return None
    return f"{found[1].lower()}://{found[2]}"


def path_of(place: str | Path) -> Path:
    """A path on this machine, which may have been written as file:///…"""
    found = URL.fullmatch(str(place))
    return Path(place) if found is None else Path(f"/{found[2]}")


class _Remote:
    """A folder or file in a store, and its working copy.

    Args:
        url: of the place.

    Raises:
        ConfigError: a package is missing, or the URL names no place.
    """

    def __init__(self, url: str) -> None:
        from twistlm.core.storage import cache_folder

        self.url = url.rstrip("/")
        try:
            from fsspec.core import url_to_fs

            self._fs, root = url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            # fsspec says which package it is.
            said = " ".join(str(error).split())
            remedy = "pip install 'twistlm[store]'" if "fsspec" in said else "pip install it"
            raise ConfigError(f"{url} cannot be opened: {said}; {remedy}") from error
        except Exception as error:
            raise ConfigError(f"{url} cannot be opened ({_said(error)}); see its scheme") from error
        self._root = root.rstrip("/")
        parent, slash, name = self._root.rpartition("/")
        if not slash or not name:
            raise ConfigError(f"{url} is a whole bucket; name a folder or a file in it, {self.url}/run")
        self.home = (cache_folder() / "places" / sha256(self.url.encode()).hexdigest()[:16]).resolve()
        self.local = self.home / name
        # Who writes, there and here.
        self._marker, self._mine = f"{parent}/.{name}.writer", self.home / f".{name}.writer"
        self._published: dict[str, tuple[int, int]] = {}

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Whatever a store raises, and each raises its own, becomes one line."""
        try:
            yield
        except TwistError:
            raise
        except Exception as error:
            raise StorageError(
                f"{self.url} cannot be reached ({_said(error)}); see address, credentials and permissions"
            ) from error

    def named(self, text: str) -> str:
        """A text with the URL in place of the working copy."""
        return text.replace(str(self.local), self.url)

    def _files(self) -> dict[str, Path]:
        """The working copy's files, by names below the place ("" is the place itself, a file)."""
        if self.local.is_file():
            return {"": self.local}
        files = [path for path in self.local.rglob("*") if path.is_file()]
        named = {path.relative_to(self.local).as_posix(): path for path in files}
        return {name: path for name, path in named.items() if not any(part[0] == "." for part in name.split("/"))}

    def _there(self) -> dict[str, str]:
        """The store's files, by the same names."""
        with suppress(FileNotFoundError):
            self._fs.invalidate_cache()
            return {path[len(self._root) + 1 :]: path for path in self._fs.find(self._root)}
        return {}

    def fetch(self) -> None:
        """Make the working copy what the store has."""
        there = self._there()
        for name, path in self._files().items():
            if name not in there:
                path.unlink()
        for name, source in there.items():
            path = self.local / name
            if self.local.is_dir() if name == "" else self.local.is_file():
                shutil.rmtree(self.local, ignore_errors=True)
                self.local.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            try:
                self._fs.get_file(source, str(temporary))
                # What is the same stays the same file, also to whoever has looked at its time.
                if not (path.is_file() and filecmp.cmp(temporary, path, shallow=False)):
                    temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        self._published = {name: _stamp(path) for name, path in self._files().items() if name in there}

    def publish(self) -> None:
        """Send what has changed, and delete what is here no longer.

        Lines that grow (`.jsonl`) go first: other files count them, and they refer to nothing.

        Raises:
            StorageError: the store refuses.
            LeaseLostError: another process of this machine has taken over the working copy.
        """
        from twistlm.core.folders import check_held

        check_held(self.local)
        with self._asked():
            files, there = self._files(), self._there()
            for name, path in sorted(files.items(), key=lambda item: (item[1].suffix != ".jsonl", _stamp(item[1])[1])):
                stamp = _stamp(path)
                if name not in there or self._published.get(name) != stamp:
                    self._fs.put_file(str(path), f"{self._root}/{name}" if name else self._root)
                    self._published[name] = stamp
            # What somebody has put beside it meanwhile is not ours.
            for gone in self._published.keys() - files.keys():
                if gone in there:
                    self._fs.rm_file(there[gone])
                del self._published[gone]

    def take(self) -> None:
        """Say that this process writes, and have what the store has.

        Raises:
            RunError: somebody else says so.
            StorageError: the store refuses.
        """
        with self._asked():
            there = self._fs.cat_file(self._marker) if self._fs.exists(self._marker) else None
            if there is not None and not (self._mine.is_file() and self._mine.read_bytes() == there):
                raise RunError(
                    f"{self.url} is being written by {_holder(there)}; wait until it has ended, choose another --out, "
                    f"or, if it never will, delete .{self.local.name}.writer beside it"
                )
            if there is not None:
                # A process of this machine had to end before it could publish: the working copy goes on, by its claim.
                self._published = dict.fromkeys(self._there(), (0, 0))
                return
            self.fetch()
            since = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}"
            claim = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode()
            # First there: a kill before the other leaves a claim of nobody's, and no working copy that seems ahead.
            self._fs.pipe_file(self._marker, claim)
            self._mine.write_bytes(claim)

    def give_back(self) -> None:
        """Let others write. Only what is published is given back."""
        with self._asked():
            self._fs.rm_file(self._marker)
        self._mine.unlink(missing_ok=True)

    @property
    def is_ahead(self) -> bool:
        """Whether the working copy has what could not be published."""
        return self._mine.is_file()


# Places that this process writes. Nobody chooses by it.
_open: list[_Remote] = []


def publish(path: Path) -> None:
    """Send what is in a working copy to its store, if this process writes it; else nothing.

    Raises:
        StorageError: the store refuses.
    """
    for each in _open:
        if path.absolute().is_relative_to(each.local):
            each.publish()


def shown(path: Path) -> str:
    """A path as its user knows it: what is in a working copy by its URL."""
    for each in _open:
        if path.absolute().is_relative_to(each.local):
            return each.named(str(path.absolute()))
    return str(path)


@contextmanager
def opened(place: str | Path, *, write: bool) -> Iterator[Path]:
    """Where to work on a place: itself, or of a URL the working copy, which has what the store has.

    Args:
        place: a path or a URL.
        write: whether anything is to be written. What is written to a working copy is in the store by the end.

    Raises:
        ConfigError: the scheme needs a package that is not there.
        RunError: somebody else is writing it.
        StorageError: the store refuses.
    """
    url = url_of(place)
    if url is None:
        yield path_of(place)
        return
    remote = _Remote(url)
    try:
        with _writing(remote) if write else _reading(remote):
            yield remote.local
    except TwistError as error:
        error.args = (remote.named(str(error)), *error.args[1:])
        raise


@contextmanager
def _writing(remote: _Remote) -> Iterator[None]:
    with _held(remote):
        remote.take()
        _open.append(remote)
        try:
            yield
            remote.publish()
            remote.give_back()
        except BaseException:
            # What there is by now; another error is the one to be told.
            try:
                if remote.is_ahead:
                    remote.publish()
                    remote.give_back()
            except TwistError as error:
                logger.warning(
                    coded("TW503", "%s. What is not published is in %s; the same again publishes it"),
                    *(error, remote.local),
                )
            raise
        finally:
            _open.remove(remote)


@contextmanager
def _reading(remote: _Remote) -> Iterator[None]:
    try:
        with _held(remote):
            # A working copy that is ahead stays.
            if not remote.is_ahead:
                with remote._asked():
                    remote.fetch()
    except RunError:
        # Written on this machine at this moment: nothing is newer.
        pass
    yield


@contextmanager
def _held(remote: _Remote) -> Iterator[None]:
    """One process of this machine at a time."""
    from twistlm.core.folders import Lock

    try:
        remote.home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{remote.url} has no room for a working copy at {remote.home} ({error.strerror}); set TWISTLM_CACHE"
        ) from error
    lock = Lock(remote.home, remote.url)
    try:
        yield
    finally:
        lock.release()


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _holder(content: bytes) -> str:
    try:
        said: dict[str, Any] = json.loads(content)
        return f"process {said['pid']} on {said['host']} since {said['since']}"
    except (ValueError, TypeError, KeyError):
        return "another process"


def _said(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
