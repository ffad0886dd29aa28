"""Where a new folder or file stands until it takes the place of an old one (`core.folders`). Imports nothing heavy."""

from pathlib import Path


def hidden(real: Path, what: str) -> Path:
    """The neighbour of a resolved path that is its "new", "old" or "lock"."""
    return real.with_name(f".{real.name}.{what}")


def is_drafted(place: Path) -> bool:
    """Whether a new folder stands beside the one at `place` that was to take its place, and has not yet."""
    try:
        return hidden(place.resolve(), "new").is_dir()
    except (OSError, ValueError, RuntimeError):
        return False
