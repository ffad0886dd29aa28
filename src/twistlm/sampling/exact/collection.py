"""Exact samples and the draws that they come from, and the file that keeps them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

import torch
from torch import Tensor

from twistlm.core.errors import ConfigError, ExactSamplesError
from twistlm.core.logmath import ess
from twistlm.sampling.cases import Case, Cases, distinct, rows_of
from twistlm.sampling.exact import file as draws_file
from twistlm.sampling.exact.file import Stream, accepts
from twistlm.sampling.samples import Samples, Siblings

# How the fingerprint of a target begins that cannot be identified.
UNIDENTIFIED = "unidentified"


class _Proof(Enum):
    """That exact samples come from a collection; sent to another process it is still itself."""

    MADE_HERE = 1


@dataclass(frozen=True)
class ExactSamples:
    """Exact, independent samples of one target. `target` is its fingerprint."""

    samples: Samples
    target: str
    _proof: _Proof | None = field(repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        """Refuse to be built from anything else than `collect` or its file."""
        if self._proof is not _Proof.MADE_HERE:
            raise ExactSamplesError(
                "ExactSamples come from Target.collect or from its file; approximate samples would void the upper bound"
            )

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def cases(self) -> list[Case]:
        """The case of each."""
        return self.samples.cases

    def take(self, count: int, at: int = 0) -> "ExactSamples":
        """`count` samples from position `at`.

        Raises:
            ExactSamplesError: there are not that many.
        """
        if at + count > len(self):
            raise ExactSamplesError(f"{count} exact samples are needed and {len(self) - at} are left; collect more")
        return self.select(torch.arange(at, at + count))

    def select(self, index: Tensor) -> "ExactSamples":
        """The samples at `index`."""
        return replace(self, samples=self.samples.select(index))


@dataclass(frozen=True)
class Collection:
    """Base draws, or draws under a constraint, and which of them were accepted.

    Attributes:
        draws: n sequences from p₀ (so `log_q == log_p`), or from what visited prefixes had ruled out of it.
        accepted: [n].
        log_upper_bound: log sup φ that acceptance used.
        target: fingerprint of the target.
        streams: where the chunks of draws came from (of a part: where those of the whole did).
        uniforms: what the chance of being accepted was compared with [n]; None where every draw is exact.
        log_most: log of what p₀φ / (q sup φ) could be at most when each was drawn [n] (`exact.ruled_out`); None for
            base draws, of which it is 1.
        log_uppers: for each prompt, log of what Z / sup φ can be at most by all that was ruled out; none of base draws.
        positions: of a part: where each of its draws is among those of the streams [n]; None of a whole.
    """

    draws: Samples
    accepted: Tensor
    log_upper_bound: float
    target: str
    streams: tuple[Stream, ...]
    uniforms: Tensor | None
    log_most: Tensor | None = None
    log_uppers: Mapping[tuple[int, ...], float] = field(default_factory=dict)
    positions: Tensor | None = None

    @property
    def are_base_draws(self) -> bool:
        """Whether p₀ by itself drew them."""
        return self.log_most is None

    @property
    def log_weights(self) -> Tensor:
        """log p₀φ / q of each [n], whose mean is Z."""
        if self.are_base_draws:
            return self.draws.log_phi
        return draws_file.log_weights(self.draws.log_p, self.draws.log_q, self.draws.log_phi)

    @property
    def log_shares(self) -> Tensor:
        """log of each one's chance of being accepted [n]."""
        most = 0.0 if self.log_most is None else self.log_most
        return self.log_weights - self.log_upper_bound - most

    def log_most_of(self, case: Case) -> float:
        """What log Z of a case can be at most, whatever was drawn."""
        return self.log_upper_bound + self.log_uppers.get(tuple(case.prompt.tolist()), 0.0)

    @property
    def exact(self) -> ExactSamples:
        """The accepted draws.

        Raises:
            ExactSamplesError: others are marked as accepted than their random numbers accept.
        """
        if not self.accepted.equal(accepts(self.log_shares, self.uniforms)):
            raise ExactSamplesError("draws are marked as accepted that are not; collect them again")
        return ExactSamples(self.draws.select(self.accepted.nonzero().squeeze(-1)), self.target, _Proof.MADE_HERE)

    @property
    def ess(self) -> float:
        """Effective number of target samples among all draws, by their weights."""
        return float(ess(self.log_weights))

    def split(self, fractions: Sequence[float]) -> "list[Collection]":
        """Consecutive disjoint parts of each prompt's draws: what is trained on must not be what one is judged on.

        Raises:
            ConfigError: the fractions are not positive or sum to more than 1.
        """
        if min(fractions) <= 0 or sum(fractions) > 1 + 1e-9:
            raise ConfigError(f"fractions must be positive and sum to at most 1, not {list(fractions)}")
        rows = rows_of(self.draws.prompts, distinct(self.draws.prompts))
        at, parts = 0.0, []
        for fraction in fractions:
            ends = [(round(len(index) * at), round(len(index) * (at + fraction))) for index in rows]
            part = torch.cat([index[start:end] for index, (start, end) in zip(rows, ends, strict=True)])
            parts.append(self.select(part.sort().values))
            at += fraction
        return parts

    def select(self, index: Tensor) -> "Collection":
        """The draws at `index`; where the whole came from stays recorded."""
        uniforms, most = (None if each is None else each[index] for each in (self.uniforms, self.log_most))
        return replace(
            self,
            draws=self.draws.select(index),
            accepted=self.accepted[index],
            uniforms=uniforms,
            log_most=most,
            positions=index if self.positions is None else self.positions[index],
        )

    def at(self, cases: Cases) -> "Collection":
        """The draws of some cases' prompts."""
        return self.select(torch.cat(rows_of(self.draws.prompts, cases)).sort().values)

    def at_each(self, cases: Cases) -> "list[Collection]":
        """For each case the draws of its prompt."""
        return [self.select(rows) for rows in rows_of(self.draws.prompts, cases)]

    def save(self, path: Path) -> None:
        """Write everything to one safetensors file, atomically."""
        numbers: dict[tuple[int, ...], int] = {}
        index = [numbers.setdefault(tuple(prompt.tolist()), len(numbers)) for prompt in self.draws.prompts]
        tensors = {
            "tokens": self.draws.tokens.int(),
            "mask": self.draws.mask,
            "log_p": self.draws.log_p,
            "log_phi": self.draws.log_phi,
            "accepted": self.accepted,
            "prompt_index": torch.tensor(index, dtype=torch.int32),
            **{f"prompt.{number}": torch.tensor(prompt, dtype=torch.int32) for prompt, number in numbers.items()},
        }
        if self.draws.features is not None:
            tensors["features"] = self.draws.features
        if self.draws.conditions is not None:
            tensors["conditions"] = self.draws.conditions.int()
        if self.draws.siblings is not None:
            tensors["siblings"] = self.draws.siblings.tokens.int()
        if self.log_most is not None:
            uppers = [self.log_uppers.get(prompt, 0.0) for prompt in numbers]
            tensors |= {"log_q": self.draws.log_q, "log_most": self.log_most}
            tensors[draws_file.UPPER] = torch.tensor(uppers, dtype=torch.float64)
        kind = "joint" if self.uniforms is None else "rejection"
        metadata = {"kind": kind, "target": self.target, "log_upper_bound": self.log_upper_bound}
        draws_file.write(path, tensors, metadata, self.streams)


def load(path: Path, target: str) -> Collection:
    """Read a file that `Collection.save` wrote, for the target whose fingerprint is `target`.

    `provenance.check` compares what it holds with the model and the potential.

    Raises:
        ExactSamplesError: the file is of another kind or version, contradicts itself, or belongs to another target.
        RunError: it is missing, corrupt or damaged.
    """
    if target.startswith(UNIDENTIFIED):
        raise ExactSamplesError(
            f"{path} cannot be told to be of this target, whose model or potential cannot be identified; collect again "
            "with a name of your own for it: Target(…, identity='my-target-v1')"
        )
    tensors, metadata = draws_file.read(path)
    if metadata.target != target:
        raise ExactSamplesError(
            f"{path} holds samples of another target ({metadata.target}, not {target}): model, prompt, length or "
            "potential differ, in name or in content; collect them for this one"
        )
    siblings = tensors.get("siblings")
    prompts = {k: tensors[f"prompt.{k}"].long() for k in tensors["prompt_index"].unique().tolist()}
    draws = Samples(
        prompts=[prompts[k] for k in tensors["prompt_index"].tolist()],
        tokens=tensors["tokens"].long(),
        mask=tensors["mask"],
        log_p=tensors["log_p"],
        log_q=tensors.get("log_q", tensors["log_p"]),
        log_phi=tensors["log_phi"],
        features=tensors.get("features"),
        # Drawn from p₀ itself, so their log p₀/q is 0.
        siblings=None
        if siblings is None
        else Siblings(siblings.long(), torch.zeros(siblings.shape, dtype=torch.float64)),
        conditions=tensors["conditions"].long() if "conditions" in tensors else None,
    )
    uniforms = None if metadata.kind == "joint" else draws_file.joined(metadata.streams)
    uppers = tensors.get(draws_file.UPPER, torch.zeros(0)).tolist()
    return Collection(
        draws,
        tensors["accepted"],
        metadata.log_upper_bound,
        target,
        metadata.streams,
        uniforms,
        tensors.get("log_most"),
        {tuple(prompts[k].tolist()): upper for k, upper in enumerate(uppers)},
    )
