"""Prompt sets that are part of the package: `requests.txt`, single-turn requests to a chat model (card: README.md)."""

from pathlib import Path


def requests_file() -> Path:
    """The file of 225 chat requests in English, UTF-8, one per line; the card beside it says how they were made."""
    return Path(__file__).parent / "requests.txt"
