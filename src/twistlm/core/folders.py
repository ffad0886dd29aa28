"""One writer at a time, and nothing lost: folders and files are locked, and replaced only by what is ready.

A lock is the system's own (flock), so it ends with the process that holds it, however that ends; and a lease
(`core.leases`), for other machines that share the folder and perhaps not its locks. A folder that is to be replaced
stays as it is while the new one is built beside it, as `.NAME.new`, and then they change places at once.
"""

import contextlib
import ctypes
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from twistlm.core import holds, leases, places
from twistlm.core.drafts import hidden
from twistlm.core.errors import StorageError, TwistError

LOCK = ".lock"


def is_lock(name: str) -> bool:
    """Whether a file in a folder is but its lock, or the lease beside that."""
    return name == LOCK or name.startswith(f"{LOCK}.")


def is_occupied(path: Path) -> bool:
    """Whether a folder has anything in it but a lock.

    Raises:
        StorageError: it cannot be looked into.
    """
    try:
        return path.is_dir() and any(not is_lock(each.name) for each in path.iterdir())
    except (OSError, ValueError) as error:
        raise _refused(path, error) from error


class _Lock:
    """The lock of `what`, held from here on. The lease beside it tells others who holds it, on other machines too.

    Args:
        file: the system's lock.
        what: as errors call it.
        roots: what may be written under it.

    Raises:
        RunError: somebody else does.
        StorageError: it cannot be made.
    """

    def __init__(self, file: Path, what: Path, *roots: Path) -> None:
        self.file, self._lock = file, FileLock(file)
        try:
            self._lock.acquire(blocking=False)
            self.lease = leases.FileLease(_beside(file), what, roots)
        except Timeout as error:
            raise leases.busy(what, _owner(file)) from error
        except BaseException as error:
            if isinstance(error, OSError | ValueError) and not isinstance(error, TwistError):
                if self._lock.is_locked:
                    with contextlib.suppress(OSError):
                        file.unlink(missing_ok=True)
                self._lock.release()
                raise _refused(what, error) from error
            self._lock.release()
            raise

    def move(self, file: Path) -> None:
        """It has been taken elsewhere, together with what it is of."""
        self.file, self.lease.file = file, _beside(file)

    def release(self) -> bool:
        """Leave no file. Whoever has opened this one meanwhile finds it deleted and makes another.

        Returns whether it was held to the end; what somebody else holds now is left alone.
        """
        held = self.lease.release()
        if held:
            with contextlib.suppress(OSError):
                self.file.unlink(missing_ok=True)
        self._lock.release()
        return held


def _beside(file: Path) -> Path:
    return file.with_name(f"{file.name}.owner")


def _owner(file: Path) -> bytes | None:
    with contextlib.suppress(OSError):
        return leases.read(_beside(file))
    return None


class Draft:
    """A folder being written.

    Attributes:
        path: where to write; after `take_place` the place that was asked for.
    """

    def __init__(self, place: Path, path: Path) -> None:
        self.place, self.path = place, path
        self.locks: list[_Lock] = []

    @property
    def replaces(self) -> bool:
        """Whether something else is still in its place."""
        return self.path != self.place

    def check(self) -> None:
        """Raises LeaseLostError where somebody else has taken over."""
        for lock in self.locks:
            lock.lease.check()

    @property
    def is_lost(self) -> bool:
        """Whether somebody else has taken over."""
        return any(lock.lease.lost for lock in self.locks)

    def take_place(self) -> None:
        """Put it where it was asked for; what was there is deleted. Nothing happens if it is there already."""
        if not self.replaces:
            return
        real = self.place.resolve()
        old = hidden(real, "old")
        self.check()
        shutil.rmtree(old, ignore_errors=True)
        before, now = self.locks
        held = holds.of(real)
        for each in held:
            each.replacing(self.path, real)
        with before.lease.guard, now.lease.guard:
            try:
                _exchange(self.path, real, old)
            except OSError as error:
                raise _refused(self.place, error) from error
            before.move(old / LOCK)
            now.move(real / LOCK)
        # It is of nothing any more, and would be missed when the old folder is deleted.
        before.release()
        self.path, self.locks = self.place, [now]
        for each in held:
            each.replaced(real)
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
    places.join(real)
    new, old = hidden(real, "new"), hidden(real, "old")
    if old.is_dir() and not real.exists():
        old.rename(real)
    draft, made, begun = Draft(place, place), _make(real), False
    try:
        draft.locks.append(_Lock(real / LOCK, place, real, place))
        # Another process may have found no folder either, and been quicker.
        begun = bool(made) and not is_occupied(real)
        shutil.rmtree(old, ignore_errors=True)
        if replace and is_occupied(real):
            draft.path = new
            _prepare(new, goes_on)
            draft.locks.append(_Lock(new / LOCK, place, new, place, real))
        yield draft
        draft.take_place()
    except Exception:
        # What somebody else writes now is left alone.
        if draft.is_lost:
            pass
        elif draft.replaces:
            _remove(new)
        elif begun and real.is_dir() and _only_asked(real):
            _remove(real)
        raise
    finally:
        for lock in draft.locks:
            lock.release()
        for folder in made:
            # Only what is empty goes.
            with contextlib.suppress(OSError):
                folder.rmdir()


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
    new, made = hidden(real, "new"), _make(real.parent)
    replace = replace and real.exists()
    locks: list[_Lock] = []
    try:
        locks.append(_Lock(hidden(real, "lock"), place, real, place, new))
        new.unlink(missing_ok=True)
        holds.removed(new)
        yield new if replace else place
        if replace and new.exists():
            holds.check(new)
            new.replace(real)
            holds.wrote(real)
    finally:
        # Without the lock, or with one that is lost, it is what somebody else writes.
        if locks and not any(lock.lease.lost for lock in locks):
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
                holds.removed(new)
        for lock in locks:
            lock.release()
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _prepare(new: Path, goes_on: Callable[[Path], bool]) -> None:
    try:
        if new.exists() and not goes_on(new):
            shutil.rmtree(new)
            holds.removed(new)
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


def _remove(folder: Path) -> None:
    """After an error, which is the one to be told."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(StorageError):
        holds.removed(folder)


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
    """Whether nothing has been done yet: besides the lock there are but JSON files, which say what was asked."""
    return all(is_lock(each.name) or each.suffix == ".json" for each in folder.iterdir())


def _refused(path: Path, error: Exception) -> StorageError:
    reason = getattr(error, "strerror", None) or str(error)
    return StorageError(f"{path} cannot be written ({reason}); choose another --out")


def _exchange(new: Path, place: Path, old: Path) -> None:
    """Two folders change places, then `new`, which is what was there, becomes `old`."""
    if not _exchanged(new, place):
        # Elsewhere than on Linux a kill may fall between the two; `writing` then puts `old` back.
        place.rename(old)
        new.rename(place)
        return
    new.rename(old)


def _exchanged(a: Path, b: Path) -> bool:
    """By Linux' renameat2(RENAME_EXCHANGE), at once; False where there is none."""
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    current, exchange = -100, 2
    return bool(function(current, os.fsencode(a), current, os.fsencode(b), exchange) == 0)
