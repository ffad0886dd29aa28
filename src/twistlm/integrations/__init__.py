"""twistlm inside other people's libraries, a thin file each; every library is imported when it is first needed."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twistlm.integrations.decoding import PosteriorOutput, generate
    from twistlm.integrations.processor import TwistProcessor

__all__ = ["PosteriorOutput", "TwistProcessor", "generate"]

_HOMES = {"generate": "decoding", "PosteriorOutput": "decoding", "TwistProcessor": "processor"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
