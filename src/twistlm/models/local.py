"""What may be fetched and what is only read: the folder of a model downloads nothing and runs no code of its own."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from twistlm.core.errors import ConfigError, ModelError, RunError
from twistlm.core.identity import Files, UnidentifiableError
from twistlm.core.processes import own_device
from twistlm.core.registry import available
from twistlm.core.storage import load_text


def is_folder(name: str) -> bool:
    """Whether a model's name is that of a folder that is here."""
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):
        return False


def is_here(name: str) -> bool:
    """Whether a model can be had without a download: its folder is here, or a copy of it from an earlier download."""
    return is_folder(name) or _downloaded(name) is not None


def _downloaded(name: str) -> Path | None:
    """The folder that a hub name was downloaded to before, if its weights are there."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "config.json")
    except (OSError, ValueError):
        return None
    folder = Path(found).parent if isinstance(found, str) else None
    weighs = folder is not None and any(each.suffix in (".safetensors", ".bin") for each in folder.iterdir())
    return folder if weighs else None


def safely(source: str | Path) -> tuple[str | Path, dict[str, Any]]:
    """Where to load a folder or a hub name from, and arguments of `from_pretrained` to do it with.

    Code that comes with a model is never run. What has been downloaded before is read as it is.

    Raises:
        ModelError: the folder names code of the hub, or the base model of an adapter that is not here.
    """
    place = source if is_folder(str(source)) else _downloaded(str(source))
    if place is None:
        return source, {"trust_remote_code": False}
    _refuse_more_than_weights(Path(place))
    return place, {"local_files_only": True, "trust_remote_code": False}


def _refuse_more_than_weights(folder: Path) -> None:
    if (kernel := next(_kernels(_fields(folder / "config.json")), None)) is not None:
        raise ModelError(
            f"the model in {folder} wants code of the hub ({kernel!r}), which is never run: take attn_implementation "
            "out of its config.json"
        )
    adapted = _fields(folder / "adapter_config.json")
    base = adapted.get("base_model_name_or_path") if isinstance(adapted, dict) else None
    if base is not None and not is_here(str(base)):
        raise ModelError(
            f"cannot load model {str(folder)!r}: it adapts {base!r}, which is not here, and a folder downloads nothing "
            "by itself; if you trust that name, fetch it with `hf download` first"
        )


def contents(kind: str, name: str) -> list[Files]:
    """What the "model" or "classifier" of that name consists of: its folder, and that of the model that it adapts.

    Raises:
        UnidentifiableError: it is not here, or holds no weights.
    """
    entries = available(kind)
    place = entries[name].value() if name in entries else Path(name) if is_folder(name) else _downloaded(name)
    if place is None:
        raise UnidentifiableError(f"the {kind} {name!r} is not on this machine")
    adapted = _fields(Path(place) / "adapter_config.json")
    base = adapted.get("base_model_name_or_path") if isinstance(adapted, dict) else None
    return [Files(Path(place)), *([] if base is None else contents(kind, str(base)))]


def usable_device(name: str) -> torch.device:
    """The torch device of that name.

    Raises:
        ConfigError: there is no such device here.
    """
    try:
        device = torch.device(own_device(name))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"device {name!r} cannot be used here ({reason}); choose cpu, or cuda where there is one"
        ) from error
    return device


def _fields(path: Path) -> Any:
    """JSON values; None where there are none, of which transformers will complain."""
    try:
        return json.loads(load_text(path))
    except (RunError, ValueError, RecursionError):
        return None


def _kernels(config: Any) -> Iterator[str]:
    """Kernels of the hub, which transformers would fetch and run, among the settings of a model."""
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            for key, each in value.items():
                if "_implementation" in f"_{key}":
                    yield from (name for name in _texts(each) if "/" in name)
                else:
                    waiting.append(each)


def _texts(value: Any) -> list[str]:
    parts = value.values() if isinstance(value, dict) else [value]
    return [part for part in parts if isinstance(part, str)]
