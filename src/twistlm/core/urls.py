"""Places that are URLs, told from paths."""

import re
from pathlib import Path

# `Path` makes one slash of two; a scheme of one letter is a drive.
URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
HERE = ("file", "local")


def url_of(place: str | Path) -> str | None:
    """The URL that a place is, also one that went through `Path`; None for a path on this machine."""
    found = URL.fullmatch(str(place))
    if found is None or found[1].lower() in HERE:
        return None
    return f"{found[1].lower()}://{found[2]}"


def path_of(place: str | Path) -> Path:
    """A path on this machine, which may have been written as file:///…"""
    found = URL.fullmatch(str(place))
    return Path(place) if found is None else Path(f"/{found[2]}")
