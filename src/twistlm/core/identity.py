"""What a value is, as a hash of its content: the same in every process, another one if anything in it changes.

Weights are identified by their numbers, folders by their files, functions by their compiled code with defaults, closure
and the globals that they read, objects by their class and state. The names of folders and functions do not count, nor
the device of a tensor. What belongs to Python, to an installed package or to twistlm is taken to be what its name says.
A variable that a function assigns itself (a model that it loads at first use) is not part of what the function is.
"""

import copyreg
import dis
import functools
import hashlib
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
SUFFIXES = {".safetensors", ".bin", ".json", ".txt", ".model", ".gguf", ".py", ".h5", ".pickle"}
# Parts of a model's configuration that say where it came from, not what it does.
PROVENANCE = {"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype"}
# What Python writes into every class (`__slotnames__` when an object is first copied), and what follows from the rest.
BOOKKEEPING = {
    "__module__", "__dict__", "__weakref__", "__doc__", "__annotations__", "__qualname__", "__firstlineno__",
    "__static_attributes__", "__abstractmethods__", "_abc_impl", "__parameters__", "__orig_bases__", "__hash__",
    "__dataclass_fields__", "__dataclass_params__", "__match_args__", "__protocol_attrs__", "_is_protocol",
    "_is_runtime_protocol", "__non_callable_proto_members__", "__subclasshook__", "__slots__", "__getstate__",
    "__setstate__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__classcell__",
    "__slotnames__",
}  # fmt: skip

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
        if id(value) in self._done:
            return self._done[id(value)]
        if id(value) in self._open:
            return _hash("above", [str(self._open[id(value)])])
        self._alive.append(value)
        self._open[id(value)] = len(self._open)
        found = _hash(*self._content(value))
        del self._open[id(value)]
        self._done[id(value)] = found
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
            return "class", self._of_class(value)
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
            # What `functools.lru_cache` makes of a function.
            wrapped = getattr(value, "__wrapped__", None) if callable(value) else None
            return ("wrapped", [self.of(wrapped)]) if isinstance(wrapped, types.FunctionType) else None
        code, assigned = value.__code__, _assigned(value.__code__)
        cells = zip(code.co_freevars, value.__closure__ or (), strict=True)
        closure = {name: _inside(cell) for name, cell in cells if name not in assigned}
        used = _globals_of(value, assigned)
        parts = (value.__defaults__, value.__kwdefaults__, closure, used)
        return "function", [self._of_code(code), *[self.of(part) for part in parts]]

    def _of_code(self, code: types.CodeType) -> str:
        numbers = (code.co_argcount, code.co_kwonlyargcount, code.co_posonlyargcount, code.co_flags)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        constants = [
            self._of_code(each) if isinstance(each, types.CodeType) else self.of(each) for each in code.co_consts
        ]
        return _hash("code", [code.co_code, code.co_exceptiontable, repr(numbers), repr(names), *constants])

    def _of_class(self, cls: type) -> list[Any]:
        parts: list[Any] = [self.of(cls.__bases__)]
        for name, each in sorted(vars(cls).items()):
            if name in BOOKKEEPING or isinstance(each, DESCRIPTORS):
                continue
            if isinstance(each, staticmethod | classmethod):
                each = each.__func__
            elif isinstance(each, property):
                each = (each.fget, each.fset)
            elif isinstance(each, functools.cached_property):
                each = each.func
            parts += [name, self.of(each)]
        return parts

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
        made, arguments, *rest = (list(part) if isinstance(part, Iterator) else part for part in reduced)
        if rest and isinstance(rest[0], dict):
            # Worked out once and kept: the same object before and after.
            cached = [
                name for name in rest[0] if isinstance(getattr(type(value), name, None), functools.cached_property)
            ]
            rest[0] = {name: each for name, each in rest[0].items() if name not in cached}
        return "object", [self.of(type(value)), self.of(made), self.of(arguments), self.of(rest)]

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
                if not key.startswith("_") and key != "training" and isinstance(each, kinds)
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


def _globals_of(function: types.FunctionType, assigned: set[str]) -> dict[str, Any]:
    """What it reads by name, in modules of the user's too; names that are attributes of something else do no harm."""
    named = _names(function.__code__) - assigned
    used = {name: function.__globals__[name] for name in named if name in function.__globals__}
    for name, module in list(used.items()):
        if isinstance(module, types.ModuleType) and not _installed(module.__name__):
            used |= {f"{name}.{each}": getattr(module, each) for each in named if hasattr(module, each)}
    return used


def _inside(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return "empty"


def _nested(code: types.CodeType) -> list[types.CodeType]:
    """The code with that of all functions in it."""
    inner = [each for each in code.co_consts if isinstance(each, types.CodeType)]
    return [code, *[each for part in inner for each in _nested(part)]]


def _names(code: types.CodeType) -> set[str]:
    return {name for each in _nested(code) for name in each.co_names}


def _assigned(code: types.CodeType) -> set[str]:
    """Globals and variables of enclosing functions that it assigns."""
    free = set(code.co_freevars)
    return {
        step.argval
        for each in _nested(code)
        for step in dis.get_instructions(each)
        if step.opname == "STORE_GLOBAL" or (step.opname == "STORE_DEREF" and step.argval in free)
    }


@lru_cache
def _installed(module: str) -> bool:
    """Whether a module belongs to Python, to an installed package or to twistlm."""
    top = module.split(".")[0]
    if top in sys.stdlib_module_names or top == "twistlm":
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    places = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
    return file is not None and file.startswith(places)


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
