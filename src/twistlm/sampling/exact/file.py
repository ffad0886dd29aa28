"""The file of base draws, and what it must fulfil to be taken for one.

Everything that can be checked without a model is checked on reading: the hash of all content, names, types and shapes
of tensors, ranges of their values, that every draw has a stream of random numbers, and that acceptance is what those
streams say. The rest (that φ and log p₀ are the model's own) `provenance.check` looks at.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from twistlm.core.errors import ExactSamplesError
from twistlm.core.identity import digest
from twistlm.core.rng import Rng
from twistlm.core.storage import ANEW, STRICT, as_type, load_tensors, save_tensors

# 2: fingerprints cover the content of models and functions; every draw has its stream; a hash of all.
FORMAT = 2
# By how much rounding may take log φ above its bound (relative, at least of 1), or log p above 0.
SLACK = 1e-5

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
OF_SEQUENCES = ("log_phi", "accepted", "prompt_index", "conditions", "log_most")
# Dtypes and dimensions, all of which begin with the draws.
NEEDED: dict[str, tuple[tuple[torch.dtype, ...], int]] = {
    "tokens": ((torch.int32,), 2),
    "mask": ((torch.bool,), 2),
    "log_p": ((torch.float64,), 2),
    "log_phi": ((torch.float64,), 1),
    "accepted": ((torch.bool,), 1),
    "prompt_index": ((torch.int32,), 1),
}
OPTIONAL: dict[str, tuple[tuple[torch.dtype, ...], int | None]] = {
    "features": ((*FLOATS, torch.int64), None),
    "conditions": ((torch.int32,), 2),
    "siblings": ((torch.int32,), 3),
    # Of draws under a constraint (`exact.ruled_out`).
    "log_q": ((torch.float64,), 2),
    "log_most": ((torch.float64,), 1),
}
# Not a draw's but a prompt's.
UPPER = "log_upper"


@dataclass(frozen=True)
class Stream:
    """Where a chunk of draws came from: `count` of them, from the stream of that seed and path (see `Rng`)."""

    __pydantic_config__ = STRICT

    seed: int
    path: tuple[str | int, ...]
    count: int

    @property
    def name(self) -> tuple[int, tuple[str | int, ...]]:
        """What tells it from others, however many are drawn from it at a time."""
        return self.seed, self.path

    def uniforms(self) -> Tensor:
        """What the chance of being accepted was compared with, for each of the draws [count]."""
        return Rng(self.seed, (*self.path, "acceptance")).uniform((1, self.count))[0]


@dataclass(frozen=True)
class Metadata:
    """What the file says besides its tensors; `content` is the hash of everything else."""

    __pydantic_config__ = STRICT

    format: int
    kind: Literal["rejection", "joint"]
    target: str
    log_upper_bound: float
    streams: tuple[Stream, ...]
    content: str


def accepts(log_share: Tensor, uniforms: Tensor | None) -> Tensor:
    """Which of the draws [n] are accepted, each with that probability; all of them where there are no uniforms."""
    if uniforms is None:
        return torch.ones_like(log_share, dtype=torch.bool)
    return uniforms.to(log_share.device).log() < log_share


def log_weights(log_p: Tensor, log_q: Tensor, log_phi: Tensor) -> Tensor:
    """log p₀φ / q of draws [n]; log φ where p₀ drew them."""
    return log_phi + (log_p - log_q).sum(-1)


def joined(streams: tuple[Stream, ...]) -> Tensor:
    """The uniforms of all draws, in order."""
    return torch.cat([stream.uniforms() for stream in streams])


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], streams: tuple[Stream, ...]) -> None:
    """Write everything to one safetensors file, atomically."""
    said = {"format": FORMAT, **metadata, "streams": [asdict(stream) for stream in streams]}
    save_tensors(path, tensors, {**said, "content": digest([tensors, said])})


def read(path: Path) -> tuple[dict[str, Tensor], Metadata]:
    """The tensors of a file, checked, and what it says of them.

    Raises:
        ExactSamplesError: the file is of another kind or version, or its content contradicts itself.
        RunError: it is missing, corrupt or damaged.
    """
    tensors, header = load_tensors(path)
    _of_this_format(path, header)
    metadata = as_type(Metadata, header, str(path))
    problem = _shapes(tensors) or _values(tensors, metadata)
    if (
        problem is None
        and digest([tensors, {name: header[name] for name in header if name != "content"}]) != metadata.content
    ):
        problem = "its content is not what its hash says"
    if problem is not None:
        raise ExactSamplesError(f"{path} cannot be taken for draws: {problem}; it was changed or damaged: {ANEW}")
    return tensors, metadata


def _of_this_format(path: Path, metadata: Any) -> None:
    if not isinstance(metadata, dict) or metadata.get("kind") not in ("rejection", "joint"):
        raise ExactSamplesError(f"{path} does not hold draws of `twistlm collect`; collect them")
    if metadata.get("format") != FORMAT:
        raise ExactSamplesError(
            f"{path} is of format {str(metadata.get('format'))[:20]} and this version reads format {FORMAT}, in which "
            "draws are tied to the content of model and potential; collect them again (a run or a sweep: with "
            "--overwrite)"
        )


def _shapes(tensors: Mapping[str, Tensor]) -> str | None:
    """What is wrong with names, types and shapes; None if nothing is."""
    for name, (dtypes, dimensions) in {**NEEDED, **OPTIONAL}.items():
        tensor = tensors.get(name)
        if tensor is None:
            if name in NEEDED:
                return f"it has no {name}"
            continue
        if tensor.dtype not in dtypes or (dimensions is not None and tensor.dim() != dimensions):
            return f"{name} is {tensor.dtype} {list(tensor.shape)}"
    count, length = tensors["tokens"].shape
    if count == 0 or length == 0:
        return f"tokens are {[count, length]}"
    for name in (*NEEDED, *OPTIONAL):
        wanted = [count] if name in OF_SEQUENCES else [count, length]
        if name in tensors and list(tensors[name].shape[: len(wanted)]) != wanted:
            return f"{name} is of shape {list(tensors[name].shape)} for tokens {[count, length]}"
    for name, tensor in tensors.items():
        known = name in NEEDED or name in OPTIONAL
        if name == UPPER and tensor.dtype == torch.float64 and tensor.dim() == 1:
            continue
        if not known and not (name.startswith("prompt.") and tensor.dtype == torch.int32 and tensor.dim() == 1):
            return f"{name} belongs to no file of draws"
    return None


def _values(tensors: Mapping[str, Tensor], metadata: Metadata) -> str | None:
    """What is wrong with values; None if nothing is."""
    log_p, log_phi, mask, bound = tensors["log_p"], tensors["log_phi"], tensors["mask"], metadata.log_upper_bound
    prompts = {f"prompt.{k}" for k in tensors["prompt_index"].unique().tolist()}
    given = {name for name in tensors if name.startswith("prompt.")}
    numbers = [name for name in ("tokens", "conditions", "siblings", *sorted(given)) if name in tensors]
    joint = metadata.kind == "joint"
    if prompts != given:
        return f"prompts are {', '.join(sorted(given)) or 'missing'} and draws have {', '.join(sorted(prompts))}"
    for name in numbers:
        if tensors[name].numel() == 0 or int(tensors[name].min()) < 0:
            return f"{name} holds no tokens, or a negative one"
    if not bool(mask[:, 0].all()) or bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        return "mask goes on after an end"
    if not bool(log_p.isfinite().all()) or bool((log_p > SLACK).any()) or bool((log_p[~mask] != 0).any()):
        return "log_p is not the logarithm of probabilities"
    if bool(log_phi.isnan().any()) or bool((log_phi > bound + SLACK * max(1.0, abs(bound))).any()):
        return f"log_phi is NaN or above its bound {bound:g}"
    if joint != ("conditions" in tensors):
        return f"it is of kind {metadata.kind} and has {'no ' if joint else ''}conditions"
    counts = [stream.count for stream in metadata.streams]
    if min(counts, default=0) < 1 or sum(counts) != len(log_phi):
        return f"{len(log_phi)} draws come from streams of {sum(counts)}"
    if len({stream.name for stream in metadata.streams}) < len(counts):
        return "two chunks come from one stream"
    problem = _under_a_constraint(tensors)
    if problem is not None:
        return problem
    uniforms = None if joint else joined(metadata.streams)
    weights = log_weights(log_p, tensors.get("log_q", log_p), log_phi)
    if not tensors["accepted"].equal(accepts(weights - bound - tensors.get("log_most", 0.0), uniforms)):
        return "accepted is not what its random numbers say"
    return None


def _under_a_constraint(tensors: Mapping[str, Tensor]) -> str | None:
    """What is wrong with what only draws under a constraint have."""
    there = [name for name in ("log_q", "log_most", UPPER) if name in tensors]
    if not there:
        return None
    if len(there) < 3:
        return f"it has {', '.join(there)} alone of what draws under a constraint have"
    log_q, log_most, log_upper = (tensors[name] for name in there)
    if not bool(log_q.isfinite().all()) or bool((log_q > SLACK).any()) or bool((log_q[~tensors["mask"]] != 0).any()):
        return "log_q is not the logarithm of probabilities"
    if bool(log_most.isnan().any()) or bool((log_most > 0).any()):
        return "log_most is not the logarithm of bounds"
    if len(log_upper) != int(tensors["prompt_index"].max()) + 1 or not bool((log_upper <= 0).all()):
        return f"{UPPER} is not a bound for each prompt"
    return None
