"""What this process holds while it writes there, and is asked and told of every write.

A hold says before each write whether it is still held, and may do something with what has been written. The list is
state of the process as its open files are: nobody chooses by it, and it is empty where nothing is being written.
"""

from collections.abc import Iterable
from pathlib import Path

from twistlm.core.errors import LeaseLostError


class Hold:
    """Something that is held: folders with all below them, or files.

    Attributes:
        what: as errors call it.
        lost: why it is held no longer; "" while it is.
    """

    def __init__(self, what: Path | str, roots: Iterable[Path]) -> None:
        self.what, self.lost = what, ""
        self._roots = {path.absolute() for path in roots}

    def covers(self, path: Path) -> bool:
        """Whether a path is in what is held."""
        place = path.absolute()
        return place in self._roots or not self._roots.isdisjoint(place.parents)

    def check(self) -> None:
        """Make sure that it is still held.

        Raises:
            LeaseLostError: somebody else has it now.
        """
        if self.lost:
            raise LeaseLostError(f"{self.what} {self.lost}; this process writes nothing more to it")

    def wrote(self, path: Path) -> None:
        """A file is whole, or has another name."""

    def removed(self, path: Path) -> None:
        """A file or folder is there no longer."""

    def replacing(self, new: Path, place: Path) -> None:
        """A folder, which is whole, is about to take the place of another."""

    def replaced(self, place: Path) -> None:
        """It has."""


_held: list[Hold] = []


def hold(it: Hold) -> None:
    """From here on it is asked and told."""
    _held.append(it)


def drop(it: Hold) -> None:
    """It no longer is."""
    if it in _held:
        _held.remove(it)


def of(path: Path) -> list[Hold]:
    """All holds that a path is in."""
    return [each for each in tuple(_held) if each.covers(path)]


def check(path: Path) -> None:
    """Make sure that a path may still be written.

    Raises:
        LeaseLostError: what was held there is not any longer.
    """
    for each in of(path):
        each.check()


def wrote(path: Path) -> None:
    """Tell that a file is whole.

    Raises:
        StorageError: what follows from it could not be done.
    """
    for each in of(path):
        each.wrote(path)


def removed(path: Path) -> None:
    """Tell that a file or folder is there no longer.

    Raises:
        StorageError: what follows from it could not be done.
    """
    for each in of(path):
        each.removed(path)
