"""One writer at a time, and nothing lost: folders and files are locked, and replaced only by what is ready.

The lock of NAME is the file `.NAME.lock` beside it, a lease of filelock's: several machines may share the folder that
it is in. A lock whose process has ended is taken over at once on the same machine, and from another machine after
`LEASE_SECONDS` without a sign of life. A folder that is to be replaced stays as it is while the new one is built beside
it, as `.NAME.new`; then it becomes `.NAME.old`, and the new one NAME. A kill between these two renames is repaired by
the next writer.
"""

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import SoftFileLease, Timeout

from twistlm.core.advice import coded
from twistlm.core.errors import LeaseLostError, RunError, StorageError

logger = logging.getLogger("twistlm")

LEASE_SECONDS = 60.0


def hidden(real: Path, what: str) -> Path:
    """The neighbour of a resolved path that is its "new", "old" or "lock"."""
    return real.with_name(f".{real.name}.{what}")


def is_drafted(place: Path) -> bool:
    """Whether a new folder stands beside the one at `place` that was to take its place, and has not yet."""
    try:
        return hidden(place.resolve(), "new").is_dir()
    except (OSError, ValueError, RuntimeError):
        return False


def is_occupied(path: Path) -> bool:
    """Whether a folder has anything in it.

    Raises:
        StorageError: it cannot be looked into.
    """
    try:
        return path.is_dir() and any(path.iterdir())
    except (OSError, ValueError) as error:
        raise _refused(path, error) from error


class Lock:
    """Who may write at a place, from here to `release`.

    Args:
        place: a resolved path; its folder exists.
        what: as errors call it.

    Raises:
        RunError: somebody else writes there.
        StorageError: the system refuses.
    """

    def __init__(self, place: Path, what: Path | str) -> None:
        self.what, self.roots = what, (place, hidden(place, "new"))
        self._lease = SoftFileLease(
            hidden(place, "lock"), lease_duration=LEASE_SECONDS, thread_local=False, poll_interval=0.02
        )
        try:
            self._take()
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise _refused(Path(what), error) from error
        self._token = self._lease.token
        _held.append(self)

    def _take(self) -> None:
        try:
            # The first try finds out that the holder has ended, and a later one takes over.
            self._lease.acquire(timeout=0.1)
        except Timeout as error:
            if (owner := self._lease.owner) is None or self._age() < LEASE_SECONDS / 2:
                raise self._busy() from error
            logger.warning(
                coded("TW501", "%s was being written by process %d on %s, which may have ended: waiting up to %g s"),
                *(self.what, owner.pid, owner.hostname, LEASE_SECONDS),
            )
            try:
                self._lease.acquire(timeout=LEASE_SECONDS + 5)
            except Timeout:
                raise self._busy() from error

    def _age(self) -> float:
        """Seconds since the holder's last sign of life, which it gives every third of a lease."""
        with contextlib.suppress(OSError):
            return time.time() - Path(self._lease.lock_file).stat().st_mtime
        return 0.0

    def _busy(self) -> RunError:
        owner = self._lease.owner
        by = "another process" if owner is None else f"process {owner.pid} on {owner.hostname}"
        return RunError(f"{self.what} is being written by {by}; wait until it has ended, or choose another --out")

    @property
    def is_lost(self) -> bool:
        """Whether somebody else has taken over, which happens to a process that was stopped for a minute."""
        owner = self._lease.owner
        return owner is None or owner.token != self._token

    def check(self) -> None:
        """Raises LeaseLostError where somebody else has taken over."""
        if self.is_lost:
            raise LeaseLostError(
                f"{self.what} was taken over by somebody else, or its lock was deleted; this process writes nothing "
                "more to it"
            )

    def covers(self, path: Path) -> bool:
        """Whether a path is in what is held."""
        return any(path.is_relative_to(root) for root in self.roots)

    def release(self) -> None:
        """Let others write."""
        if self in _held:
            _held.remove(self)
        with contextlib.suppress(OSError):
            self._lease.release()


# State of the process as its open files are: nobody chooses by it, and it is empty where nothing is being written.
_held: list[Lock] = []


def check_held(path: Path) -> None:
    """Make sure that a path may still be written.

    Raises:
        LeaseLostError: this process held it, and somebody else has taken over.
    """
    for lock in tuple(_held):
        # Resolved, as what is held is: it may be written by way of a link.
        if lock.covers(_resolved(path)):
            lock.check()


class Draft:
    """A folder being written.

    Attributes:
        path: where to write; after `take_place` the place that was asked for.
    """

    def __init__(self, place: Path, path: Path, lock: Lock) -> None:
        self.place, self.path, self.lock = place, path, lock

    @property
    def replaces(self) -> bool:
        """Whether something else is still in its place."""
        return self.path != self.place

    def take_place(self) -> None:
        """Put it where it was asked for; what was there is deleted. Nothing happens if it is there already."""
        if not self.replaces:
            return
        real = self.place.resolve()
        old = hidden(real, "old")
        self.lock.check()
        shutil.rmtree(old, ignore_errors=True)
        try:
            real.rename(old)
            try:
                self.path.rename(real)
            except OSError:
                old.rename(real)
                raise
        except OSError as error:
            raise _refused(self.place, error) from error
        self.path = self.place
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def writing(
    place: Path, *, replace: bool = False, goes_on: Callable[[Path], bool] = lambda path: False
) -> Iterator[Draft]:
    """Hold a folder while it is written.

    An error takes back what was begun here: the new folder of a replacement, or one that has nothing in it yet but what
    was asked. A kill leaves them, to be continued or cleaned by the next.

    Args:
        place: the folder; made if it is not there.
        replace: build a new one and let it take the place of what is there.
        goes_on: whether a new one that an earlier attempt has left, at the given path, is to be continued.

    Raises:
        RunError: somebody else is writing it.
        StorageError: the system refuses.
    """
    real = _resolved(place)
    new, old = hidden(real, "new"), hidden(real, "old")
    with _locked(real, place) as lock:
        if old.is_dir() and not real.exists():
            old.rename(real)
        shutil.rmtree(old, ignore_errors=True)
        made = _make(real)
        draft = Draft(place, new if replace and is_occupied(real) else place, lock)
        try:
            if draft.replaces:
                _prepare(new, goes_on)
            yield draft
            draft.take_place()
        except Exception:
            # What somebody else writes now is left alone.
            if not lock.is_lost:
                if draft.replaces:
                    shutil.rmtree(new, ignore_errors=True)
                elif made and real.is_dir() and _only_asked(real):
                    shutil.rmtree(real, ignore_errors=True)
            raise
        finally:
            if made and not lock.is_lost:
                # Only what is empty goes.
                with contextlib.suppress(OSError):
                    real.rmdir()


@contextmanager
def writing_file(place: Path, *, replace: bool = False) -> Iterator[Path]:
    """Hold a file while it is written; yields where to write it. `replace`: what is there stays until the end.

    Raises:
        RunError: somebody else is writing it.
        StorageError: a folder is in the way, or the system refuses.
    """
    if place.exists() and not place.is_file():
        what = "a folder" if place.is_dir() else "a device"
        raise StorageError(f"{place} is {what} and should be a file; choose another --out")
    real = _resolved(place)
    new = hidden(real, "new")
    with _locked(real, place) as lock:
        replace = replace and real.exists()
        new.unlink(missing_ok=True)
        try:
            yield new if replace else place
            if replace and new.exists():
                lock.check()
                new.replace(real)
        finally:
            # With a lock that is lost, it is what somebody else writes.
            if not lock.is_lost:
                new.unlink(missing_ok=True)


@contextmanager
def _locked(real: Path, what: Path) -> Iterator[Lock]:
    """The lock of a place, whose folder is made for it and goes again if it is empty."""
    made = _make(real.parent)
    try:
        lock = Lock(real, what)
        try:
            yield lock
        finally:
            lock.release()
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _prepare(new: Path, goes_on: Callable[[Path], bool]) -> None:
    try:
        if new.exists() and not goes_on(new):
            shutil.rmtree(new)
        new.mkdir(exist_ok=True)
    except OSError as error:
        raise _refused(new, error) from error


def check_room(path: Path, needed: float) -> None:
    """Refuse early what would fill the disk.

    Raises:
        StorageError: fewer than `needed` bytes are free where `path` is, or will be.
    """
    there = next(each for each in (path, *path.absolute().parents) if each.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise StorageError(
            f"{path} will need about {needed / 2**20:.0f} MiB and {free / 2**20:.0f} MiB are free there; make room, "
            "choose another --out, or ask for less (--num-draws)"
        )


def _resolved(place: Path) -> Path:
    try:
        return place.resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise _refused(place, error) from error


def _make(folder: Path) -> list[Path]:
    """Make a folder; returns those that were not there, the innermost first."""
    try:
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise _refused(folder, error) from error
    return missing


def _only_asked(folder: Path) -> bool:
    """Whether nothing has been done yet: there are but JSON files, which say what was asked."""
    return all(each.suffix == ".json" for each in folder.iterdir())


def _refused(path: Path, error: Exception) -> StorageError:
    reason = getattr(error, "strerror", None) or str(error)
    return StorageError(f"{path} cannot be written ({reason}); choose another --out")
