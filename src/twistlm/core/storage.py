"""Files that are either whole or absent: every write goes to a neighbour first and is then renamed over."""

import hashlib
import json
import math
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from twistlm.core.errors import DamagedError, RunError, StorageError, TwistError
from twistlm.core.folders import check_held

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")

# For `__pydantic_config__` of a dataclass that is read from files: nothing unknown, no NaN and nothing infinite.
STRICT: dict[str, Any] = {"extra": "forbid", "allow_inf_nan": False}
# What helps where tensors are damaged. Evaluated without its draws, a run would lose half of its certificate.
ANEW = "restore it, or delete it and make it again with what made it (of a run: `twistlm train … --resume`)"
# Bytes of a text that is read.
MOST_TEXT = 2**30
# Characters of a wrong value that an error shows.
SHOWN = 60


@contextmanager
def remedied(remedy: str) -> Iterator[None]:
    """Whoever reads a file meanwhile that is damaged is told this remedy."""
    try:
        yield
    except DamagedError as error:
        raise DamagedError(error.found, remedy) from error


def cache_folder() -> Path:
    """What can be made again is kept here: `$TWISTLM_CACHE`, or `~/.cache/twistlm`."""
    return Path(os.environ.get("TWISTLM_CACHE") or "~/.cache/twistlm").expanduser()


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, rename it: survives a kill at any moment.

    Raises:
        StorageError: the system refuses: no room, no permission, something in the way; or somebody else has taken over
            what this process was writing (`core.folders`).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whatever library writes it: the permissions of a file that is simply opened here.
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        check_held(path)
        temporary.replace(path)
    except TwistError:
        raise
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path} cannot be written ({_reason(error)}); what was there is as it was") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_temporary(folder: Path) -> None:
    """Delete what killed processes have left half-written; only for the one writer of a folder."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def share(source: Path, path: Path) -> None:
    """Make `path` the same file as `source` by a hard link, or a copy where the file system has none.

    Neither is ever written through: every file of ours is replaced as a whole, which leaves the other as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    check_held(path)
    try:
        path.hardlink_to(source.resolve())
    except OSError:
        write_atomically(path, lambda temporary: _copy(source, temporary))


def _copy(source: Path, path: Path) -> None:
    shutil.copyfile(source, path)


def save_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    save_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_plain) + "\n")


def save_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines atomically."""
    save_text(path, "".join(json.dumps(row, ensure_ascii=False, default=_plain) + "\n" for row in rows))


def as_json(value: Any) -> Any:
    """A value as it will be read from a file."""
    return json.loads(json.dumps(value, default=_plain))


def _plain(value: Any) -> Any:
    """What `json` does not know: numbers of numpy as Python's, and data classes as pydantic writes them.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if is_dataclass(value):
        return _adapter(cast(Any, type(value))).dump_python(value, mode="json", by_alias=True, warnings=False)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def save_text(path: Path, text: str) -> None:
    """Write text atomically."""
    write_atomically(path, lambda temporary: _write(temporary, text))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _check_file(path: Path, most: float = math.inf) -> None:
    """Raises StorageError for what would be read for ever (a pipe, a device), or has more bytes than memory."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        # Whoever opens it says why.
        return
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise StorageError(f"{path} is no ordinary file; see what is there")
    if status.st_size > most:
        raise StorageError(f"{path} has {status.st_size / 2**20:,.0f} MiB, which no such file has; see what is there")


def load_text(path: Path) -> str:
    """Read text.

    Raises:
        RunError: the file is missing, or is not text.
        StorageError: it cannot be read.
    """
    _check_file(path, MOST_TEXT)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist; is this a run folder?") from error
    except UnicodeDecodeError as error:
        raise DamagedError(f"{path} is corrupt ({error})") from error
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} cannot be read ({_reason(error)}); see what is there") from error


def load_lines(path: Path) -> list[str]:
    """Read lines of text: what `save_lines` wrote, or was added to it.

    Raises:
        RunError: the file is missing, or is not text.
        StorageError: it cannot be read.
    """
    # Not `splitlines`: what a model writes may hold other characters that end a line for some.
    text = load_text(path)
    return text.removesuffix("\n").split("\n") if text else []


def load_json(path: Path) -> Any:
    """Read JSON. NaN and infinities are not JSON.

    Raises:
        RunError: the file is missing or is not JSON.
        StorageError: it cannot be read.
    """
    return parse_json(load_text(path), str(path), parse_constant=_no_number)


def parse_json(text: str, where: str, **options: Any) -> Any:
    """JSON values; `where` names the text in errors.

    Raises:
        RunError: it is not JSON, or nested deeper than anything of ours.
    """
    try:
        return json.loads(text, **options)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{where} is corrupt ({error})") from error


def load_typed(path: Path, expected: type[T]) -> T:
    """Read JSON as `expected`: a dataclass, or anything else that pydantic knows to check.

    Raises:
        RunError: the file is missing, is not JSON, or something else is in it.
        StorageError: it cannot be read.
    """
    return as_type(expected, load_json(path), str(path))


def as_type(expected: type[T], value: Any, where: str) -> T:
    """JSON values as `expected`, strictly: no text for a number, nothing missing, and nothing unknown where forbidden.

    Raises:
        RunError: they are something else; the message names `where`, the field and the value.
    """
    from pydantic import ValidationError

    try:
        return cast(T, _adapter(cast(Any, expected)).validate_json(json.dumps(value), strict=True))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(map(str, problem["loc"])) or "everything"
        said = problem["msg"].removeprefix("Value error, ")
        wrong = "" if problem["type"] == "missing" else f", not {shortened(problem['input'])}"
        raise DamagedError(f"{where} is damaged or of another version: {field}: {said}{wrong}") from error
    except RecursionError as error:
        raise DamagedError(f"{where} is corrupt ({error})") from error


@lru_cache
def _adapter(expected: Any) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(expected)


def digest(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        RunError: it is not there.
        StorageError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({_reason(error)}); see what is there") from error


def shortened(value: Any) -> str:
    """A value as an error shows it."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def shown_json(value: Any) -> str:
    """A JSON value as an error shows it, in JSON's words."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write safetensors atomically; `metadata` is any JSON object."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # One key only: safetensors writes several in an arbitrary order, and equal content should give equal bytes.
    header = {"twistlm": json.dumps(dict(metadata), default=_plain)}
    write_atomically(path, lambda temporary: save_file(plain, temporary, metadata=header))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read safetensors and their metadata.

    Raises:
        RunError: the file is missing or corrupt.
        StorageError: it cannot be read.
    """
    _check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            text = (file.metadata() or {}).get("twistlm", "{}")
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist") from error
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        if path.is_dir() or isinstance(error, PermissionError):
            raise StorageError(f"{path} cannot be read ({_reason(error)}); see what is there") from error
        raise DamagedError(f"{path} is corrupt or is not a safetensors file ({error})", ANEW) from error
    metadata = parse_json(text, str(path))
    if not isinstance(metadata, dict):
        raise DamagedError(f"{path} is corrupt: it says of itself {shortened(metadata)}", ANEW)
    return tensors, metadata


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """Refuse tensors that are not like those that are expected: by name, shape, type, and in being numbers.

    −inf is a number here, a logarithm of zero; but not where a parameter is expected, one that takes a gradient, or a
    single number, a factor.

    Raises:
        RunError: the message names `where` and the first tensor that is wrong.
    """
    for name in sorted({*found, *expected}):
        if name not in found:
            wrong = "is missing"
        elif name not in expected:
            wrong = "has no place here"
        elif found[name].shape != expected[name].shape:
            wrong = f"has shape {list(found[name].shape)}, not {list(expected[name].shape)}"
        elif found[name].dtype != expected[name].dtype:
            wrong = f"is of {found[name].dtype}, not of {expected[name].dtype}"
        elif bool((found[name].isnan() | found[name].isposinf()).any()):
            wrong = "has values that are not numbers"
        elif (expected[name].requires_grad or expected[name].dim() == 0) and bool(found[name].isneginf().any()):
            wrong = "has values that no training leaves, −inf"
        else:
            continue
        raise RunError(f"{where} is damaged, or of other settings: {name} {wrong}; restore it or train again")
