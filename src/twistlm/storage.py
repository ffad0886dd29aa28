"""Files that are either whole or absent: every write goes to a neighbour first and is then renamed over."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from twistlm.errors import RunError


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, rename it: survives a kill at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def share(source: Path, path: Path) -> None:
    """Make `path` the same file as `source` by a hard link, or a copy where the file system has none.

    Neither is ever written through: every file of ours is replaced as a whole, which leaves the other as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.hardlink_to(source.resolve())
    except OSError:
        write_atomically(path, lambda temporary: _copy(source, temporary))


def _copy(source: Path, path: Path) -> None:
    shutil.copyfile(source, path)


def save_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    save_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def save_text(path: Path, text: str) -> None:
    """Write text atomically."""
    write_atomically(path, lambda temporary: _write(temporary, text))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def load_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        RunError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist; is this a run folder?") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is corrupt ({error}); restore it or start over with --overwrite") from error


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write safetensors atomically; `metadata` is any JSON object."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # One key only: safetensors writes several in an arbitrary order, and equal content should give equal bytes.
    header = {"twistlm": json.dumps(dict(metadata))}
    write_atomically(path, lambda temporary: save_file(plain, temporary, metadata=header))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read safetensors and their metadata.

    Raises:
        RunError: the file is missing or corrupt.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            metadata = json.loads((file.metadata() or {}).get("twistlm", "{}"))
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError(f"{path} is corrupt or is not a safetensors file ({error}); delete it and run again") from error
    return tensors, metadata
