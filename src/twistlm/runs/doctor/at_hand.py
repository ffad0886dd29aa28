"""Models, classifiers and scorers that can be had without a download."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import CachedRepoInfo, CacheNotFound, scan_cache_dir

from twistlm.core.errors import ModelError, TwistError
from twistlm.core.plugins import is_own
from twistlm.core.registry import Entry, available
from twistlm.models.local import is_here
from twistlm.models.packaged import gguf_folder
from twistlm.potentials._bilstm import packaged_folder

Kind = Literal["model", "classifier", "scorer"]
# Those that are registered.
KINDS: tuple[Kind, ...] = ("model", "classifier")


@dataclass(frozen=True)
class AtHand:
    """Something that can be named in a target.

    Attributes:
        kind: "model" for p₀, "classifier" with labels, "scorer" with a single number (a reward model).
        name: as it is named.
        source: "bundled", "package", "plugin" or "hub cache".
        about: what it is.
        problem: why it cannot be used, with the remedy; "" if it can.
        needed: whether twistlm is broken without it.
    """

    kind: Kind
    name: str
    source: str
    about: str
    problem: str = ""
    needed: bool = False


def at_hand() -> list[AtHand]:
    """All that is here, and what packages would bring. Of the bundled ones every file is checked.

    Raises:
        ConfigError: a plugin cannot be loaded.
    """
    found = [_registered(kind, entry) for kind in KINDS for entry in available(kind).values()]
    jigsaw = available("potential")["jigsaw"]
    found.append(_looked_at("classifier", "jigsaw", f"as a potential: {jigsaw.summary}", packaged_folder))
    return found + sorted(_cached(), key=lambda each: (each.kind, each.name))


def _registered(kind: Kind, entry: Entry) -> AtHand:
    if not is_own(entry.value.__module__):
        # What it takes to make one is not known.
        return AtHand(kind, entry.name, "plugin", entry.summary)
    if entry.name == "smollm2":
        # Its package is looked for, and not converted: that takes 20 seconds.
        return _looked_at(kind, entry.name, entry.summary, gguf_folder)
    try:
        entry.value()
    except TwistError as error:
        return AtHand(kind, entry.name, "bundled", entry.summary, str(error), needed=True)
    return AtHand(kind, entry.name, "bundled", entry.summary)


def _looked_at(kind: Kind, name: str, about: str, look: Callable[[], Path]) -> AtHand:
    try:
        look()
    except ModelError as error:
        return AtHand(kind, name, "package", about, str(error))
    return AtHand(kind, name, "package", about)


def _cached() -> Iterator[AtHand]:
    """Models in the local cache of the hub that are whole."""
    try:
        repositories = scan_cache_dir().repos
    except (CacheNotFound, OSError, ValueError):
        return
    for each in repositories:
        if each.repo_type == "model" and is_here(each.repo_id) and (kind := _kind(each)) is not None:
            yield AtHand(kind, each.repo_id, "hub cache", f"{each.size_on_disk / 1e6:,.0f} MB in {each.repo_path}")


def _kind(repository: CachedRepoInfo) -> Kind | None:
    """What its `config.json` says that it is; None for what has no place in a target."""
    newest = sorted(repository.revisions, key=lambda each: each.last_modified)
    for config in (revision.snapshot_path / "config.json" for revision in newest[::-1]):
        try:
            fields = json.loads(config.read_text(encoding="utf-8"))
            architectures = [str(each) for each in fields.get("architectures") or ()]
            labels = fields.get("id2label")
        except (OSError, ValueError, AttributeError, TypeError):
            continue
        if any(each.endswith(("ForCausalLM", "LMHeadModel")) for each in architectures):
            return "model"
        if any(each.endswith("ForSequenceClassification") for each in architectures):
            return "scorer" if isinstance(labels, dict) and len(labels) == 1 else "classifier"
    return None
