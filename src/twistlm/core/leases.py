"""Leases: who writes somewhere, said where all who might write there see it, and renewed as long as it is true.

A lease is taken from its holder only when whoever waits has seen it unchanged for `EXPIRE_SECONDS` by its own clock:
the clocks of two machines are never compared. A holder that has been stopped for so long looks before it writes again,
finds the lease gone, and stops for good.

What is left: a single write that was under way when its process was stopped may still land when it goes on. It is a
whole file of what was asked there.
"""

import json
import logging
import os
import secrets
import socket
import sys
import threading
import time
import uuid
from abc import abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from twistlm.core.advice import coded
from twistlm.core.errors import LeaseLostError, RunError, StorageError
from twistlm.core.holds import Hold, drop, hold

logger = logging.getLogger("twistlm")

RENEW_SECONDS, EXPIRE_SECONDS = 5.0, 60.0
# Digits of the counter that renewing raises: always as many, so that it is written over in place.
DIGITS = 20

T = TypeVar("T")


def now() -> float:
    """Seconds on a clock that nobody sets, and that goes on while the machine sleeps."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


def kernel() -> str:
    """What tells this machine since its start, as this process sees its folders, from every other.

    Within it a system's lock (flock) says whether a holder is still there; two containers may not share it.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/mnt').readlink()}"
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode():x}"


@dataclass(frozen=True)
class Claim:
    """What a lease says of its holder.

    Attributes:
        token: tells the lease from all others.
        host, pid, since, command: for a reader.
        kernel: as `kernel`.
        home: the working copy of a place in a store.
    """

    token: str
    host: str
    pid: int
    since: str
    command: str
    kernel: str
    home: str = ""

    @staticmethod
    def mine() -> "Claim":
        """A new one of this process."""
        return Claim(
            secrets.token_hex(8),
            socket.gethostname(),
            os.getpid(),
            f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}",
            " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200],
            kernel(),
        )

    def written(self, count: int) -> bytes:
        """As the lease's file holds it: a line that stays, and how often it has been renewed."""
        return f"{json.dumps(asdict(self))}\n{count:0{DIGITS}}\n".encode()

    @staticmethod
    def read(content: bytes) -> "Claim | None":
        """What such a file says; None if it says something else."""
        try:
            return Claim(**json.loads(content.partition(b"\n")[0]))
        except (ValueError, TypeError):
            return None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since} ({self.command})"


def shown(content: bytes | None) -> str:
    """Whose lease that is."""
    claim = None if content is None else Claim.read(content)
    return "another process" if claim is None else str(claim)


def busy(what: Path | str, content: bytes | None) -> RunError:
    """The error of whoever comes second."""
    return RunError(f"{what} is being written by {shown(content)}; wait until it has ended, or choose another --out")


def unchanged(read: Callable[[], T], what: Path | str, holder: str) -> bool:
    """Whether what is read stays the same for so long that its holder is held to have ended."""
    begun, first = now(), read()
    logger.warning(
        coded("TW501", "%s was being written by %s, which may have ended or not: waiting up to %g s for a sign of it"),
        *(what, holder, EXPIRE_SECONDS),
    )
    while now() - begun < EXPIRE_SECONDS:
        time.sleep(min(1.0, EXPIRE_SECONDS / 20))
        if read() != first:
            return False
    return True


class Lease(Hold):
    """A hold that a thread renews from here on, until `release`.

    Args:
        what: as errors call it.
        roots: what it is of.
    """

    def __init__(self, what: Path | str, roots: Iterable[Path]) -> None:
        super().__init__(what, roots)
        self.claim, self.count = Claim.mine(), 0
        # Whoever moves the file of a lease keeps it from being renewed meanwhile.
        self.guard = threading.RLock()
        self._ended = threading.Event()
        self._renewed = now()

    @abstractmethod
    def _renew(self) -> str:
        """Say again that it is held; returns why it is not, if it is not."""

    @property
    def age(self) -> float:
        """Seconds since it was last known to be held."""
        return now() - self._renewed

    def hold(self) -> None:
        """Now that it is taken: renew it, and answer for what is written."""
        hold(self)
        threading.Thread(target=self._renewing, daemon=True, name="twistlm-lease").start()

    def _renewing(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            # Lost, it is found by the next write, and so is a system that refuses.
            with suppress(Exception):
                self.renew()

    def renew(self) -> None:
        """Say again that it is held.

        Raises:
            LeaseLostError: it is not.
            StorageError: the system refuses.
        """
        with self.guard:
            if self._ended.is_set():
                return
            super().check()
            begun = now()
            self.count += 1
            try:
                self.lost = self._renew()
            except OSError as error:
                if isinstance(error, StorageError):
                    raise
                reason = error.strerror or str(error)
                raise StorageError(f"{self.what} cannot be held any longer ({reason}); choose another --out") from error
            super().check()
            self._renewed = begun

    def check(self) -> None:
        """Make sure that it is still held; it surely is if it was renewed not long ago.

        Raises:
            LeaseLostError: it is not.
            StorageError: the system refuses to say so.
        """
        super().check()
        if self.age > EXPIRE_SECONDS / 2:
            self.renew()

    def end(self) -> bool:
        """Neither renew it nor answer any longer; returns whether it was held to the end."""
        with self.guard:
            held = not self.lost and not self._ended.is_set()
            if held:
                with suppress(LeaseLostError, StorageError):
                    self.check()
            self._ended.set()
            drop(self)
            return held and not self.lost


class FileLease(Lease):
    """A lease by a file beside what is written, for folders that several machines may share.

    Creating it is atomic there, and renewing writes into the file that is there and never makes one. So a holder that
    comes back late finds another's file, or none, and can tell for sure.

    Args:
        file: the lease.
        what: as errors call it.
        roots: what it is of.

    Raises:
        RunError: somebody else holds it.
        OSError: the system refuses.
    """

    def __init__(self, file: Path, what: Path | str, roots: Iterable[Path]) -> None:
        super().__init__(what, roots)
        self.file = file
        while not self._made():
            self._clear()
        self.hold()

    def _made(self) -> bool:
        self._renewed = now()
        try:
            with self.file.open("xb", buffering=0) as file:
                try:
                    file.write(self.claim.written(0))
                except OSError:
                    # On a full disk, say: an empty one would keep others waiting for its holder.
                    self.file.unlink(missing_ok=True)
                    raise
        except FileExistsError:
            return False
        # What was killed while it put another's aside.
        for rest in self.file.parent.glob(f"{self.file.name}.*"):
            rest.unlink(missing_ok=True)
        return True

    def _clear(self) -> None:
        """Take away what an ended holder has left.

        Raises:
            RunError: it has not ended.
        """
        there = read(self.file)
        if there is None:
            return
        claim = Claim.read(there)
        # The system's lock is ours by now: a holder on this machine would have it.
        ended = claim is not None and claim.kernel == self.claim.kernel
        if not ended and not unchanged(lambda: read(self.file), self.what, shown(there)):
            if (content := read(self.file)) is None:
                return
            raise busy(self.what, content)
        self._put_aside(there)

    def _put_aside(self, content: bytes) -> bool:
        """Remove the lease if it is this one, however often renewed; puts back any other."""
        aside = self.file.with_name(f"{self.file.name}.{self.claim.token}")
        try:
            self.file.rename(aside)
        except FileNotFoundError:
            return False
        found = read(aside)
        mine = found is not None and _line(found) == _line(content)
        if not mine:
            with suppress(OSError):
                self.file.hardlink_to(aside)
        aside.unlink(missing_ok=True)
        return mine

    def _renew(self) -> str:
        try:
            with self.file.open("r+b", buffering=0) as file:
                content = file.read()
                if _line(content) == _line(self.claim.written(0)):
                    file.seek(len(_line(content)) + 1)
                    file.write(f"{self.count:0{DIGITS}}\n".encode())
                    return ""
        except FileNotFoundError:
            return f"has lost its lock: {self.file} was deleted"
        return f"was taken over by {shown(content)}, after {EXPIRE_SECONDS:g} s without a sign of this process"

    def release(self) -> bool:
        """Give it back; returns whether it was held to the end."""
        held = self.end()
        if held:
            with suppress(OSError):
                self._put_aside(self.claim.written(0))
        return held


def read(file: Path) -> bytes | None:
    """What a lease's file holds; None if there is none."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def _line(content: bytes) -> bytes:
    return content.partition(b"\n")[0]
