"""How this process was started: alone, or by `torchrun` or `accelerate launch` as one of several.

Reads what these leave in the environment, and nothing else: the command line asks before it imports torch.
"""

import os


def launched() -> bool:
    """Whether this is one of several processes that a launcher has started together."""
    return _number("WORLD_SIZE", 1) > 1


def is_first() -> bool:
    """Whether this process speaks for all, and writes: the first of several, or the only one."""
    return _number("RANK", 0) == 0


def own_device(name: str) -> str:
    """The device that `name` means to this process: "cuda" is a GPU of its own, if there are several processes."""
    return f"cuda:{_number('LOCAL_RANK', 0)}" if name == "cuda" and launched() else name


def _number(name: str, default: int) -> int:
    given = os.environ.get(name, "")
    return int(given) if given.isdecimal() else default
