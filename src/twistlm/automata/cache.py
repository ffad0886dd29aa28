"""Automata over tokens that were compiled before, on disk: a vocabulary of 50,000 takes a second or two each time.

A file is written in one move and named by all that it follows from, so that any number of processes may read, write
and delete here at once. Whatever cannot be read or written is compiled anew.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from twistlm.automata.automaton import Automaton
from twistlm.automata.tokens import TokenAutomaton
from twistlm.core.errors import TwistError
from twistlm.core.storage import cache_folder, load_tensors, save_tensors

# Another one whenever what is compiled, or how it is kept, changes.
FORMAT = 2
# Of all files together; what was not used for longest goes first.
MOST_BYTES = 256_000_000
SUFFIX = ".safetensors"


def compiled(
    automaton: Automaton, tokens: Sequence[bytes], ends: Sequence[int], lengths: tuple[int, float], inside: int = 0
) -> TokenAutomaton:
    """`TokenAutomaton.of`, from the cache if it is there."""
    path = cache_folder() / "automata" / (_key(automaton, tokens, ends, inside) + SUFFIX)
    found = _read(path)
    if found is None:
        found = TokenAutomaton.of(automaton, tokens, ends, inside=inside)
        _write(path, found)
    return replace(found, lengths=lengths)


def _key(automaton: Automaton, tokens: Sequence[bytes], ends: Sequence[int], inside: int) -> str:
    whole = hashlib.sha256(f"{FORMAT} {ends} {inside} {automaton.following.shape} {len(tokens)}".encode())
    whole.update(automaton.following.tobytes())
    whole.update(automaton.accepting.tobytes())
    for token in tokens:
        whole.update(len(token).to_bytes(4, "little") + token)
    return whole.hexdigest()[:32]


def _read(path: Path) -> TokenAutomaton | None:
    try:
        tensors, said = load_tensors(path)
        os.utime(path)
        return TokenAutomaton(
            tensors["following"].long(), tensors["accepting"], tensors["token_class"].long(), said["eos"],
            inside=said["inside"],
        )  # fmt: skip
    except (TwistError, OSError, KeyError):
        return None


def _write(path: Path, found: TokenAutomaton) -> None:
    tensors = {
        "following": found.following.to(torch.int32),
        "accepting": found.accepting,
        "token_class": found.token_class.to(torch.int32),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(path, tensors, {"eos": found.eos, "inside": found.inside})
        _tidy(path.parent)
    except (TwistError, OSError):
        pass


def _tidy(folder: Path) -> None:
    """Delete what was not used for longest, until the rest is small enough."""
    files = list(_there(folder.glob(f"*{SUFFIX}")))
    total = sum(stat.st_size for _, stat in files)
    for path, stat in sorted(files, key=lambda pair: pair[1].st_mtime):
        if total <= MOST_BYTES:
            return
        path.unlink(missing_ok=True)
        total -= stat.st_size


def _there(paths: Iterable[Path]) -> Iterable[tuple[Path, os.stat_result]]:
    """Those that nobody has deleted meanwhile."""
    for path in paths:
        try:
            yield path, path.stat()
        except FileNotFoundError:
            continue
