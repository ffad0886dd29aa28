"""Object stores and other file systems of fsspec, as far as runs need them: whole objects by name.

What is relied on: an object is replaced at once (S3, Google Cloud Storage, Azure and memory do that), and a listing
shows what was written before it was asked for (they do that, too).
"""

import random
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from twistlm.core import leases
from twistlm.core.errors import ConfigError, StorageError, TwistError
from twistlm.core.leases import Claim, Lease, busy, now, shown, unchanged

# What tells a version of an object from others, by the names that stores give it; the first that is there.
TOKENS = ("ETag", "etag", "md5Hash", "content_md5", "generation", "created", "LastModified", "mtime")


class Store:
    """What is beside and below a place in a store, by names relative to the folder that the place is in.

    Args:
        url: of the place.

    Raises:
        ConfigError: a package is missing, or the URL names none.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        scheme = url.partition("://")[0]
        try:
            from fsspec.core import url_to_fs

            self._fs, path = url_to_fs(url.rstrip("/"), use_listings_cache=False)
        except ImportError as error:
            # fsspec says which package it is.
            said = " ".join(str(error).split())
            remedy = "pip install 'twistlm[store]'" if "fsspec" in said else "pip install it"
            raise ConfigError(f"{url} cannot be opened: {said}; {remedy}") from error
        except Exception as error:
            raise ConfigError(f"{url} cannot be opened ({_said(error)}); see its scheme, {scheme}://") from error
        self._root, slash, self.name = path.rpartition("/")
        if not slash or not self.name:
            raise ConfigError(f"{url} is a whole bucket; name a folder or a file in it, {url.rstrip('/')}/run")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Whatever a store raises, and each raises its own, becomes one line."""
        try:
            yield
        except TwistError:
            raise
        except FileNotFoundError as error:
            raise StorageError(f"{self.url} is not there ({_said(error)}); make the bucket first") from error
        except Exception as error:
            raise StorageError(
                f"{self.url} cannot be reached ({_said(error)}); see address, credentials and permissions"
            ) from error

    def files(self, name: str) -> dict[str, str | None]:
        """What is at a name and below it, with what tells each version from others; None where nothing does."""
        with self._asked():
            self._fs.invalidate_cache()
            try:
                found: Mapping[str, Mapping[str, Any]] = self._fs.find(self._path(name), detail=True)
            except FileNotFoundError:
                return {}
        return {path[len(self._root) + 1 :]: _token(info) for path, info in found.items() if info["type"] == "file"}

    def put(self, file: Path, name: str) -> str | None:
        """Replace an object by a file; returns what tells its version from others."""
        with self._asked():
            self._fs.put_file(str(file), self._path(name))
            self._fs.invalidate_cache()
            return _token(self._fs.info(self._path(name)))

    def get(self, name: str, file: Path) -> None:
        """Write an object to a file."""
        with self._asked():
            self._fs.get_file(self._path(name), str(file))

    def write(self, name: str, content: bytes) -> None:
        """Replace a small object."""
        with self._asked():
            self._fs.pipe_file(self._path(name), content)

    def read(self, name: str) -> bytes | None:
        """A small object; None if it is not there."""
        with self._asked():
            self._fs.invalidate_cache()
            try:
                content: bytes = self._fs.cat_file(self._path(name))
            except FileNotFoundError:
                return None
            return content

    def copy(self, name: str, other: str) -> None:
        """Replace an object by another one."""
        with self._asked():
            self._fs.cp_file(self._path(name), self._path(other))

    def remove(self, names: Iterable[str]) -> None:
        """Delete objects, those that are there."""
        with self._asked():
            for name in names:
                with suppress(FileNotFoundError):
                    self._fs.rm_file(self._path(name))


def _token(info: Mapping[str, Any]) -> str | None:
    token = next((info[name] for name in TOKENS if info.get(name) is not None), None)
    if isinstance(token, datetime):
        # A listing may say it in one way and a look at one object in another.
        token = token.timestamp()
    return None if token is None else f"{token} {info.get('size')}"


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


class StoreLease(Lease):
    """A lease by an object beside what is written. Each contender writes one of its own and looks who else has one.

    Whoever then sees nobody else has it, and two that see each other both withdraw and try again: so never two have it,
    wherever a listing shows what was written before. (An object that is only created if it is not there would do as
    well, but not every store knows that, and none says whether it does.)

    A store has no write that fails because the lease is gone. So who could not renew it for as long as it lasts, by its
    own clock, has lost it, whether somebody else came or not.

    Args:
        store: where.
        home: its working copy, whose lock of this machine is held already.
        roots: what of that may be written.

    Raises:
        RunError: somebody else holds it.
        StorageError: the store refuses.
    """

    def __init__(self, store: Store, home: Path, roots: Iterable[Path]) -> None:
        super().__init__(store.url, roots)
        self.store, self._folder = store, folder_of_leases(store.name)
        self.claim = replace(self.claim, home=str(home))
        self._own = f"{self._folder}/{self.claim.token}"
        while not self._taken():
            time.sleep(random.uniform(0.1, 1.0))
        self.hold()

    def _taken(self) -> bool:
        ended = self._ended_ones()
        self._renewed = now()
        taken = False
        try:
            self.store.write(self._own, self.claim.written(0))
            if self._others() == ended:
                self.store.remove(ended)
                taken = True
        finally:
            if not taken:
                self.store.remove([self._own])
        return taken

    def _others(self) -> dict[str, bytes]:
        found = {name: self.store.read(name) for name in self.store.files(self._folder) if name != self._own}
        return {name: content for name, content in found.items() if content is not None}

    def _ended_ones(self) -> dict[str, bytes]:
        """Leases whose holders have ended.

        Raises:
            RunError: one has not.
        """
        others = self._others()
        for name, content in others.items():
            claim = Claim.read(content)
            if claim is not None and (claim.kernel, claim.home) == (self.claim.kernel, self.claim.home):
                # Its working copy is locked by us.
                continue
            read = partial(self.store.read, name)
            if not unchanged(read, self.what, shown(content)):
                if (there := read()) is None:
                    return self._ended_ones()
                raise busy(self.what, there)
        return others

    def _renew(self) -> str:
        if self.store.read(self._own) is None:
            return self._why()
        if self.age <= leases.EXPIRE_SECONDS:
            self.store.write(self._own, self.claim.written(self.count))
            if self.age <= leases.EXPIRE_SECONDS:
                return ""
        # Stopped in the middle of that, it may have come after somebody else had taken the lease away.
        self.store.remove([self._own])
        return self._why()

    def _why(self) -> str:
        late = f"{leases.EXPIRE_SECONDS:g} s without a sign of this process"
        other = next(iter(self._others().values()), None)
        what = "is not held any longer" if other is None else f"was taken over by {shown(other)}"
        return f"{what}, after {late}"

    def release(self) -> None:
        """Give it back."""
        if self.end():
            with suppress(StorageError):
                self.store.remove([self._own])


def folder_of_leases(name: str) -> str:
    """Where the leases on a place are, beside it."""
    return f".{name}.lock"
