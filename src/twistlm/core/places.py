"""Places: a path on this machine, or a URL of anything that fsspec knows, `s3://bucket/run`.

A URL is worked on in a working copy (`core.mirrors`). One process at a time writes it, by a lease in the store
(`core.stores`); whoever reads has what the store has, and no hold on anything.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout

from twistlm.core import holds
from twistlm.core.advice import coded
from twistlm.core.errors import LeaseLostError, StorageError, TwistError
from twistlm.core.holds import Hold
from twistlm.core.leases import busy
from twistlm.core.mirrors import Mirror, copies, logger
from twistlm.core.stores import StoreLease, folder_of_leases
from twistlm.core.urls import path_of, url_of


def shown(path: Path) -> str:
    """A path as its user knows it: what is in a working copy by its URL."""
    for each in holds.of(path):
        if isinstance(each, _Session):
            return each.named(str(path))
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
        LeaseLostError: somebody else has taken over.
    """
    url = url_of(place)
    if url is None:
        yield path_of(place)
        return
    mirror = Mirror(url)
    try:
        with _writing(mirror) if write else _reading(mirror):
            yield mirror.local
    except TwistError as error:
        error.args = (_named(mirror, str(error)), *error.args[1:])
        raise


def _named(mirror: Mirror, text: str) -> str:
    return text.replace(str(mirror.local), mirror.url)


class _Session(StoreLease):
    """A place in a store that this process writes."""

    def __init__(self, mirror: Mirror) -> None:
        self.mirror = mirror
        super().__init__(mirror.store, mirror.home, mirror.roots)

    def named(self, text: str) -> str:
        """A text with the URL in place of the working copy."""
        return _named(self.mirror, text)

    def wrote(self, path: Path) -> None:
        """Publish it."""
        self.check()
        self.mirror.publish(path)

    def removed(self, path: Path) -> None:
        """Delete it in the store."""
        self.check()
        self.mirror.remove(path)

    def replacing(self, new: Path, place: Path) -> None:
        """Say in the store that the draft counts."""
        if place.absolute() == self.mirror.local:
            self.check()
            self.mirror.commit()

    def replaced(self, place: Path) -> None:
        """Put it in its place in the store."""
        if place.absolute() == self.mirror.local:
            self.check()
            self.mirror.finish()
            self.mirror.swapped()


class _Helper(Hold):
    """A place in a store that this process writes for another, whose lease it looks at each time."""

    def __init__(self, mirror: Mirror, token: str) -> None:
        super().__init__(mirror.url, mirror.roots)
        self.mirror, self._lease = mirror, f"{folder_of_leases(mirror.name)}/{token}"

    def _ask(self) -> None:
        if self.mirror.store.read(self._lease) is None:
            self.lost = "was taken over from the process that this one works for"
        self.check()

    def wrote(self, path: Path) -> None:
        """Publish it."""
        self._ask()
        self.mirror.publish(path)

    def removed(self, path: Path) -> None:
        """Delete it in the store."""
        self._ask()
        self.mirror.remove(path)


def join(path: Path) -> None:
    """Publish what this process will write, if that is in the working copy of a place that another process holds.

    Raises:
        StorageError: the file that says so is damaged.
    """
    place, root = path.resolve(), copies().resolve()
    if root not in place.parents or any(isinstance(each, _Session | _Helper) for each in holds.of(path)):
        return
    home, name = root / place.relative_to(root).parts[0], place.relative_to(root).parts[1]
    try:
        said = json.loads((home / f".{name}.place.json").read_bytes())
        holds.hold(_Helper(Mirror(said["url"]), said["token"]))
    except FileNotFoundError:
        return
    except (ValueError, KeyError) as error:
        raise StorageError(f"{home} is damaged ({error}); delete it") from error


@contextmanager
def _writing(mirror: Mirror) -> Iterator[None]:
    _make(mirror)
    lock = FileLock(mirror.lock)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise busy(mirror.url, _said(mirror)) from error
    try:
        # Packages and credentials first: an error of theirs says most.
        session = _Session(mirror)
        try:
            mirror.writer.write_text(json.dumps({**asdict(session.claim), "url": mirror.url}), encoding="utf-8")
            mirror.finish()
            mirror.fetch(draft=True)
            yield
            session.check()
            mirror.publish_all()
        except BaseException as error:
            if not isinstance(error, LeaseLostError):
                _save(session)
            raise
        finally:
            session.release()
            mirror.writer.unlink(missing_ok=True)
    finally:
        lock.release()


def _save(session: _Session) -> None:
    """What there is by now, when something else has gone wrong."""
    try:
        session.check()
        session.mirror.publish_all()
    except TwistError as error:
        logger.warning(
            coded("TW503", "%s. What is not published is in %s; the same again publishes it"),
            *(error, session.mirror.local),
        )


def _said(mirror: Mirror) -> bytes | None:
    """Of the process on this machine that writes it."""
    with suppress(OSError, ValueError):
        said = json.loads(mirror.writer.read_bytes())
        return json.dumps({name: each for name, each in said.items() if name != "url"}).encode()
    return None


@contextmanager
def _reading(mirror: Mirror) -> Iterator[None]:
    _make(mirror)
    lock = FileLock(mirror.lock)
    while True:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if mirror.writer.exists():
                # Written on this machine at this moment: nothing is newer.
                break
            time.sleep(0.1)
        else:
            try:
                mirror.writer.unlink(missing_ok=True)
                mirror.fetch(draft=False)
            finally:
                lock.release()
            break
    yield


def _make(mirror: Mirror) -> None:
    try:
        mirror.home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{mirror.url} has no room for a working copy at {mirror.home} ({error.strerror}); set TWISTLM_CACHE"
        ) from error
