"""What a value is, as a hash of its content: the same in every process, another one if anything in it changes.

Weights are identified by their numbers, folders by their files, functions and classes by their source (with that of the
module that defines them, unless it is the program itself), defaults and closure, objects by their class and state. The
names of folders do not count, nor the device of a tensor. What belongs to Python, to an installed package or to twistlm
is taken to be what its name says.

What a function reads elsewhere (another module of the user's, a file) is not followed. Whoever changes that says so by
`Target(…, identity="…")`; and p₀ and φ of stored draws are computed again before they are believed.
"""

import copyreg
import functools
import hashlib
import inspect
import json
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from twistlm.core.errors import TwistError

# Files of a model's folder that decide what it computes and how it reads text.
SUFFIXES = {".safetensors", ".bin", ".json", ".txt", ".model", ".gguf", ".py", ".h5", ".pickle", ".jinja"}
# Parts of a model's configuration that say where it came from, not what it does.
PROVENANCE = {"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype"}
# What torch writes into every module.
OF_TORCH = vars(nn.Module()).keys()

PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))
DESCRIPTORS = (
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
)


class UnidentifiableError(TwistError):
    """Something has no content that could be read: a compiled function, an open file, a lock."""


@dataclass(frozen=True)
class Files:
    """A folder of weights, or one file, that stands for its content."""

    path: Path


def digest(value: Any) -> str:
    """SHA-256 of what `value` is, in hexadecimal.

    An object says what it consists of, besides its class, by a method `identified_by()`, or as it would to pickle.

    Raises:
        UnidentifiableError: some part of it cannot be read; the message says which.
    """
    return _Walk().of(value)


class _Walk:
    """One walk over a value. An object that contains itself is, there, its place on the way from the top."""

    def __init__(self) -> None:
        self._done: dict[int, str] = {}
        self._open: dict[int, int] = {}
        # Numbers of objects mean something only while the objects live.
        self._alive: list[Any] = []

    def of(self, value: Any) -> str:
        if isinstance(value, PLAIN):
            return _hash(type(value).__name__, [value.hex() if isinstance(value, float | bytes) else repr(value)])
        key = id(value)
        if key in self._done:
            return self._done[key]
        if key in self._open:
            return _hash("above", [str(self._open[key])])
        self._alive.append(value)
        self._open[key] = len(self._open)
        found = _hash(*self._content(value))
        del self._open[key]
        self._done[key] = found
        return found

    def _content(self, value: Any) -> tuple[str, list[Any]]:
        """The kind of a value, and the texts, bytes and digests that it consists of."""
        if isinstance(value, Files):
            return "files", [files_digest(value.path)]
        if isinstance(value, PurePath):
            return "path", [str(value)]
        if isinstance(value, Mapping):
            pairs = sorted((self.of(key), self.of(each)) for key, each in value.items())
            return "mapping", [part for pair in pairs for part in pair]
        if isinstance(value, list | tuple):
            return "sequence", [self.of(each) for each in value]
        if isinstance(value, set | frozenset):
            return "set", sorted(self.of(each) for each in value)
        if isinstance(value, Tensor):
            return "tensor", _of_tensor(value)
        if isinstance(value, np.ndarray) and value.dtype != object:
            return "array", [value.dtype.str, str(value.shape), np.ascontiguousarray(value).tobytes()]
        if isinstance(value, types.ModuleType):
            return "module", [value.__name__]
        if (name := _name(value)) is not None:
            return "installed", [name]
        if isinstance(value, type):
            return "class", [self.of(value.__bases__), *_source(value)]
        return self._of_function(value) or self._of_object(value)

    def _of_function(self, value: Any) -> tuple[str, list[Any]] | None:
        """None for an object that is no function, though it may be one that can be called."""
        if isinstance(value, functools.partial):
            return "partial", [self.of(part) for part in (value.func, value.args, value.keywords)]
        if isinstance(value, types.MethodType):
            return "method", [self.of(value.__func__), self.of(value.__self__)]
        if isinstance(value, types.BuiltinFunctionType):
            if value.__self__ is not None and not isinstance(value.__self__, types.ModuleType):
                return "method", [value.__name__, self.of(value.__self__)]
            raise UnidentifiableError(f"{value.__qualname__} is a compiled function, whose code cannot be read")
        if not isinstance(value, types.FunctionType):
            # What remembers results changes none; whatever else wraps a function may have settings of its own.
            is_cache = isinstance(value, functools._lru_cache_wrapper)
            return ("wrapped", [self.of(value.__wrapped__)]) if is_cache else None
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        closure = {name: _inside(cell) for name, cell in cells}
        parts = [self.of(each) for each in (value.__defaults__, value.__kwdefaults__, closure)]
        return "function", [*_source(value), *parts]

    def _of_object(self, value: Any) -> tuple[str, list[Any]]:
        if hasattr(value, "identified_by"):
            return "object", [self.of(type(value)), self.of(value.identified_by())]
        if isinstance(value, nn.Module):
            return "network", self._of_network(value)
        if hasattr(value, "get_vocab") and hasattr(value, "special_tokens_map"):
            return "tokenizer", [self.of(_of_tokenizer(value))]
        try:
            reduce = copyreg.dispatch_table.get(type(value))
            reduced: Any = value.__reduce_ex__(4) if reduce is None else reduce(value)
        except Exception as error:
            raise UnidentifiableError(f"{type(value).__qualname__} holds what cannot be read ({error})") from error
        if isinstance(reduced, str):
            return "object", [self.of(type(value)), reduced]
        parts = [list(part) if isinstance(part, Iterator) else part for part in reduced]
        if len(parts) > 2 and isinstance(parts[2], dict):
            # Worked out once and kept: the same object before and after. The other names are of a wrapped function.
            kept = functools.cached_property
            parts[2] = {
                name: each
                for name, each in parts[2].items()
                if not isinstance(getattr(type(value), name, None), kept) and name not in functools.WRAPPER_ASSIGNMENTS
            }
        return "object", [self.of(type(value)), *map(self.of, parts)]

    def _of_network(self, network: nn.Module) -> list[Any]:
        parts: list[Any] = []
        config: Any = getattr(network, "config", None)
        configured = hasattr(config, "to_dict")
        for name, module in network.named_modules():
            installed = _name(type(module)) is not None
            if installed and configured:
                # Its configuration says what it is; modules may have been exchanged for faster ones.
                continue
            kinds = PLAIN if installed else object
            settings = {
                key: each
                for key, each in vars(module).items()
                if key not in OF_TORCH and not (installed and key.startswith("_")) and isinstance(each, kinds)
            }
            parts += [name, self.of(type(module)), self.of(settings)]
        if configured:
            parts.append(_json({name: each for name, each in config.to_dict().items() if name not in PROVENANCE}))
        for tensors in (network.named_parameters(), network.named_buffers()):
            for name, tensor in tensors:
                parts += [name, *_of_tensor(tensor)]
        return parts


def _hash(kind: str, parts: list[Any]) -> str:
    hasher = hashlib.sha256(kind.encode())
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        hasher.update(f":{len(content)}:".encode())
        hasher.update(content)
    return hasher.hexdigest()


def _of_tensor(tensor: Tensor) -> list[Any]:
    plain = tensor.detach()
    plain = plain if plain.layout == torch.strided else plain.to_dense()
    numbers = plain.cpu().contiguous().flatten().view(torch.uint8)
    return [str(tensor.dtype), str(list(tensor.shape)), numbers.numpy().data]


def _of_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """A tokenizer of transformers: its rules, its vocabulary, its special tokens."""
    found: dict[str, Any] = {
        "special": {name: str(each) for name, each in tokenizer.special_tokens_map.items()},
        "length": str(tokenizer.model_max_length),
        "class": type(tokenizer).__qualname__,
    }
    # How it writes chats; most have none.
    if (template := getattr(tokenizer, "chat_template", None)) is not None:
        found["chat_template"] = template
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {**found, "vocabulary": dict(tokenizer.get_vocab())}
    rules = json.loads(backend.to_str())
    # How it was last asked to cut and to pad, which changes with every call.
    return {**found, "rules": _json({k: each for k, each in rules.items() if k not in ("truncation", "padding")})}


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


# --- Functions -----------------------------------------------------------------------------------------------


def _name(value: Any) -> str | None:
    """The name of a function or class that is installed; None for those of a user's, whose code counts."""
    if isinstance(value, DESCRIPTORS):
        return f"{value.__objclass__.__module__}:{value.__qualname__}"
    if isinstance(value, np.ufunc):
        return f"numpy:{value.__name__}"
    if isinstance(value, types.BuiltinFunctionType) and isinstance(value.__self__, type):
        return f"{value.__self__.__module__}:{value.__self__.__qualname__}.{value.__name__}"
    if not isinstance(value, types.FunctionType | types.BuiltinFunctionType | type):
        return None
    module, name = value.__module__, value.__qualname__
    return f"{module}:{name}" if isinstance(module, str) and "<" not in name and _installed(module) else None


@lru_cache
def _installed(module: str) -> bool:
    """Whether a module belongs to Python, to an installed package or to twistlm."""
    top = module.split(".")[0]
    if top in sys.stdlib_module_names or top == "twistlm":
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    places = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
    return file is not None and file.startswith(places)


def _source(value: Any) -> list[str]:
    """The source of a function or class, and the content of the module that defines it."""
    try:
        source = inspect.getsource(value)
    except (OSError, TypeError) as error:
        raise UnidentifiableError(f"{value.__qualname__} has no source that could be read") from error
    file = Path(inspect.getsourcefile(value) or "")
    # A program's own file says how it is trained, too; and a notebook has none.
    return [source] if value.__module__ == "__main__" or not file.is_file() else [source, files_digest(file)]


def _inside(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return "empty"


# --- Files ---------------------------------------------------------------------------------------------------


def files_digest(path: Path) -> str:
    """Hash of a file, or of all files of a folder that decide what a model computes; names in the folder count.

    Raises:
        UnidentifiableError: there are none.
    """
    alone = path.is_file()
    files = [path] if alone else sorted(each for each in path.glob("*") if each.suffix in SUFFIXES)
    if not files:
        raise UnidentifiableError(f"{path} holds no weights")
    parts = []
    for file in files:
        stat = file.stat()
        parts += ["" if alone else file.name, _file_digest(str(file.resolve()), stat.st_size, stat.st_mtime_ns)]
    return _hash("files", parts)


@lru_cache(maxsize=4096)
def _file_digest(path: str, size: int, time: int) -> str:
    """Read once per process for every path, size and time."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
