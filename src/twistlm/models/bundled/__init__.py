"""Small models that are part of the package: a story-telling language model and classifiers of what it tells.

They stand in for larger ones of the hub in tests, demos and comparisons of methods, in the same file formats and
through the same code. What each is made of, and how good it is, says the card in its folder; `recipes/` rebuilds them.
"""

import json
from functools import lru_cache
from pathlib import Path

from twistlm.core.errors import ModelError, TwistError
from twistlm.core.registry import register
from twistlm.core.storage import digest

HERE = Path(__file__).parent
HASHES = HERE / "hashes.json"
REMEDY = "pip install --force-reinstall --no-deps twistlm"


@lru_cache
def folder(name: str) -> Path:
    """The folder of the bundled model `name`, for `from_pretrained`; its files are checked once per process.

    Raises:
        ModelError: a file is missing, cut off or changed.
    """
    for file, expected in json.loads(HASHES.read_text())[name].items():
        path = HERE / name / file
        try:
            found = digest(path)
        except TwistError:
            raise ModelError(f"the bundled model {name} has lost {path}: {REMEDY}") from None
        if found != expected:
            raise ModelError(f"the bundled model {name} is damaged ({path} is not the file it should be): {REMEDY}")
    return HERE / name


@register("classifier", "toxicity")
def toxicity() -> Path:
    """Toxic or not, distilled from two packaged classifiers: label "toxic"."""
    return folder("toxicity")


@register("classifier", "sentiment")
def sentiment() -> Path:
    """Sentiment of a tweet: labels "negative", "neutral" and "positive"."""
    return folder("sentiment")


@register("classifier", "stars")
def stars() -> Path:
    """Sentiment on a scale of five: labels "1 star" to "5 stars"."""
    return folder("stars")
