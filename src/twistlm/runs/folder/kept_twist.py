"""The file of a finished twist: its parameters, what weighs beside it, and which draws it has seen."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from twistlm.core.errors import ConfigError, RunError
from twistlm.core.storage import load_tensors, save_tensors
from twistlm.sampling.exact.origins import Origins
from twistlm.twists.informed import Informed


@dataclass(frozen=True)
class KeptTwist:
    """A finished twist.

    Attributes:
        tensors: its parameters.
        informed: what weighs beside it, if anything does.
        seen: where the draws come from that it was trained on or chosen by; none in files of older versions.
    """

    tensors: dict[str, Tensor]
    informed: Informed | None
    seen: Origins


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], seen: Origins) -> None:
    """Write a twist with what training says of it, atomically."""
    save_tensors(path, tensors, {**metadata, "seen": seen.as_list()})


def load(path: Path) -> KeptTwist:
    """Read what `save` wrote.

    Raises:
        RunError: the file says something else.
    """
    tensors, about = load_tensors(path)
    seen, informed = Origins.from_list(about.get("seen", []), f"{path}: seen"), about.get("informed")
    try:
        return KeptTwist(tensors, None if informed is None else Informed.from_dict(informed), seen)
    except (ConfigError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(f"{path} does not say what weighs beside its twist: {error}; train it again") from error
