"""Where training samples come from, and how they are weighted.

A source makes independent sequences with the densities they were drawn from. From those, one batch serves every role
of a loss: weighted by p₀φ/q it is a sample of the target, by p₀ψ_t/q at each t one of π_t, by p₀/q one of p₀.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from twistlm.core.errors import ConfigError, ExactSamplesError
from twistlm.core.logmath import normalise, truncated
from twistlm.core.registry import Entry, lookup, register
from twistlm.core.rng import Rng
from twistlm.sampling.cases import Case, Cases, rows_of
from twistlm.sampling.exact.collection import Collection
from twistlm.sampling.mixture import Pool
from twistlm.sampling.proposals import base
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.samples import Samples
from twistlm.sampling.smc import Keep


@dataclass(frozen=True)
class Setting:
    """What sources draw from.

    Attributes:
        sampler: base model, current twist and potential.
        targets: where this update samples: the one prompt, or some of a set.
        collection: base draws set aside for training, with those accepted as exact; None if none were collected.
        num_siblings: K further draws of each token, for sources that draw afresh.
        pool: all draws made so far, for the source of that name.
        joint: one exact sample for each of the conditions that this update's sequences are given, if targets differ;
            fresh, or collected where the source "draws" is used.
    """

    sampler: Sampler
    targets: Cases
    collection: Collection | None = None
    num_siblings: int = 0
    pool: Pool | None = None
    joint: Samples | None = None

    @property
    def cases(self) -> list[Case]:
        """The targets of this update: one for each prompt, or one for each of the conditions."""
        return list(self.targets) if self.joint is None else self.joint.cases

    @property
    def keep(self) -> Keep:
        """What sources that draw afresh keep of every token."""
        return Keep(self.sampler.model.features_are_reusable, self.num_siblings)

    def each(self, count: int) -> int:
        """How many of `count` sequences each target gets, at least one."""
        return max(1, count // len(self.cases))


@dataclass(frozen=True)
class Batch:
    """Sequences with log weights towards σ.

    Attributes:
        samples: B sequences.
        log_w: log p₀φ/q up to a constant [B].
        log_ratio: log p₀(s_1:t)/q(s_1:t) [B, T]; None where only the target weights are known (SMC, exact samples).
        num_targets: R targets that the sequences belong to, equally many to each, one after the other: weights are
            normalised among those of one target.
        whole: the batch that this is a part of, whose rows `rows` it has; None if it is no part.
        baseline: whether weights towards σ count by what they differ from those of equally good draws.
        target_weights: what each target counts in the loss, 1 on average over the whole batch [R]; None: all alike.
    """

    samples: Samples
    log_w: Tensor
    log_ratio: Tensor | None
    num_targets: int = 1
    whole: "Batch | None" = None
    rows: Tensor | None = None
    baseline: bool = False
    target_weights: Tensor | None = None

    def truncated(self, share: float) -> "Batch":
        """Weights towards σ of which none is more than that share of its target's, or one in √n if that is more."""
        log_w = truncated(self.log_w.view(self.num_targets, -1), 1 / share).flatten()
        return replace(self, log_w=log_w)

    def parts(self, rng: Rng, count: int) -> "Iterator[Batch]":
        """So many random parts, or as many as there can be: each of some targets, or of some rows of every target."""
        if count == 1:
            yield self
            return
        targets, each = self.num_targets, len(self.samples) // self.num_targets
        rows = torch.arange(len(self.samples)).view(targets, each)
        if targets >= count:
            some = rows[rng.uniform((1, targets))[0].argsort()].tensor_split(count)
        else:
            some = rows.gather(-1, rng.uniform((targets, each)).argsort(-1)).tensor_split(min(count, each), -1)
        # Each is copied as its turn comes, features of every token included.
        yield from map(self._part, some)

    def _part(self, rows: Tensor) -> "Batch":
        """Rows [R', n] of R' targets."""
        flat, each = rows.flatten(), len(self.samples) // self.num_targets
        return Batch(
            self.samples.select(flat),
            self.log_w[flat],
            None if self.log_ratio is None else self.log_ratio[flat],
            len(rows),
            self,
            flat,
            self.baseline,
            None if self.target_weights is None else self.target_weights[rows[:, 0] // each],
        )


Source = Callable[[Rng, Setting, int], Batch]


def get_source(expression: str) -> Source:
    """The registered source of that name; several joined by "+" share the sequences equally among them.

    Raises:
        ConfigError: a name is unknown.
    """
    parts: list[Source] = [entry.value for entry in parts_of(expression)]
    if len(parts) == 1:
        return parts[0]

    def mixture(rng: Rng, setting: Setting, count: int) -> Batch:
        share = max(1, count // len(parts))
        return _mixed([part(rng.fork(k), setting, share) for k, part in enumerate(parts)])

    return mixture


def uses(expression: str, name: str) -> bool:
    """Whether the source is that one or has it among its parts."""
    return name in _names(expression)


def serves(expression: str, role: str) -> bool:
    """Whether the source gives what `role` (see `losses`) needs: some give sequences whose q is not known."""
    return all(role in entry.options.get("roles", (role,)) for entry in parts_of(expression))


def marked(expression: str, option: str) -> bool:
    """Whether the source, or a part of it, was registered with that option set."""
    return any(entry.options.get(option, False) for entry in parts_of(expression))


def parts_of(expression: str) -> list[Entry]:
    """The registered sources that the expression names."""
    return [lookup("source", name) for name in _names(expression)]


def _names(expression: str) -> list[str]:
    return [name.strip() for name in expression.split("+")]


def _mixed(parts: list[Batch]) -> Batch:
    """One batch of all sequences; towards σ each part counts by its number of sequences."""
    targets = parts[0].num_targets
    sizes = [len(part.samples) // targets for part in parts]
    whole = Samples.concatenate([part.samples for part in parts])
    starts = torch.tensor([0, *sizes[:-1]]).cumsum(0) * targets
    # The sequences of one target, from every part, come one after the other.
    order = torch.cat(
        [
            start + target * size + torch.arange(size)
            for target in range(targets)
            for start, size in zip(starts.tolist(), sizes, strict=True)
        ]
    )
    log_w = torch.cat(
        [
            (normalise(part.log_w.view(targets, -1)) * size).log().flatten()
            for part, size in zip(parts, sizes, strict=True)
        ]
    )
    ratios = [part.log_ratio for part in parts if part.log_ratio is not None]
    log_ratio = torch.cat(ratios)[order] if len(ratios) == len(parts) else None
    return Batch(whole.select(order), log_w[order], log_ratio, targets)


def independent(samples: Samples, num_targets: int = 1) -> Batch:
    """A batch of independent draws: importance weights without resampling."""
    log_ratio = (samples.log_p - samples.log_q).cumsum(-1)
    return Batch(samples, log_ratio[:, -1] + samples.log_phi, log_ratio, num_targets)


def _drawn(rng: Rng, setting: Setting, count: int, sampler: Sampler) -> Batch:
    samples = sampler.draw(rng, setting.cases, setting.each(count), keep=setting.keep)
    return independent(samples, len(setting.cases))


@register("source", "base")
def from_base(rng: Rng, setting: Setting, count: int) -> Batch:
    """Fresh draws from p₀, weighted by φ."""
    # With the twist's model: what it has read of the prompt serves again.
    return _drawn(rng, setting, count, replace(setting.sampler, proposal=base))


@register("source", "proposal")
def from_proposal(rng: Rng, setting: Setting, count: int) -> Batch:
    """Fresh draws from the current proposal, by self-normalised importance weights."""
    return _drawn(rng, setting, count, setting.sampler)


@register("source", "smc", roles=("target", "drawn"))
def from_smc(rng: Rng, setting: Setting, count: int) -> Batch:
    """Approximate target samples by SMC with the current twist."""
    # A run that misses the target is a miss, as a batch of the proposal's draws would be.
    sampler, cases = replace(setting.sampler, may_die=True), setting.cases
    result = sampler.smc(rng, cases, setting.each(count), keep=Keep(setting.keep.features))
    return Batch(sampler.samples_of(result, cases), result.particles.log_w.flatten(), None, len(cases))


@register("source", "draws")
def from_draws(rng: Rng, setting: Setting, count: int) -> Batch:
    """A random part of the base draws that collecting exact samples has paid for, weighted by φ.

    Where targets differ by a condition, each is an exact sample of the target of its own.
    """
    if setting.joint is not None:
        return from_exact(rng, setting, count)
    draws = _collected(setting).draws
    return independent(draws.select(_some(rng, setting, draws, count)), len(setting.targets))


@register("source", "pool", pooled=True)
def from_pool(rng: Rng, setting: Setting, count: int) -> Batch:
    """A random part of all draws made so far, weighted against the mixture of the proposals that made them."""
    if setting.pool is None:
        raise ConfigError("source 'pool' is filled by training; draw from 'proposal' or 'base' otherwise")
    samples, log_ratio = setting.pool.draw(rng, setting.targets, setting.each(count))
    return Batch(samples, log_ratio[:, -1] + samples.log_phi, log_ratio, len(setting.targets))


@register("source", "exact", roles=("target", "drawn"))
def from_exact(rng: Rng, setting: Setting, count: int) -> Batch:
    """A random part of the exact target samples, equally weighted; fresh ones where targets differ by a condition."""
    if setting.joint is not None:
        weights = torch.zeros(len(setting.joint), dtype=torch.float64)
        return Batch(setting.joint, weights, None, len(setting.joint))
    samples = _collected(setting).exact.samples
    rows = rows_of(samples.prompts, setting.targets)
    if min(map(len, rows)) == 0:
        raise ExactSamplesError("source 'exact' needs exact samples for training, and none was accepted; collect more")
    each = min(setting.each(count), max(map(len, rows)))
    shuffled = [index[rng.uniform((1, len(index)))[0].argsort()] for index in rows]
    # Where a prompt has fewer than its share, each of them comes several times.
    chosen = samples.select(torch.cat([index.repeat(-(-each // len(index)))[:each] for index in shuffled]))
    return Batch(chosen, torch.zeros(len(chosen), dtype=torch.float64), None, len(rows))


def collected_joint(rng: Rng, setting: Setting, each: int) -> Samples:
    """`each` of the collected draws of every prompt at most, with the conditions that they are exact samples given."""
    draws = _collected(setting).draws
    return draws.select(_some(rng, setting, draws, each * len(setting.targets)))


def _some(rng: Rng, setting: Setting, draws: Samples, count: int) -> Tensor:
    """Which of the draws: a random part, of each target as many, those of one after the other's."""
    rows = rows_of(draws.prompts, setting.targets)
    each = min(setting.each(count), *map(len, rows))
    return torch.cat([index[rng.uniform((1, len(index)))[0].argsort()[:each]] for index in rows])


def _collected(setting: Setting) -> Collection:
    if setting.collection is None:
        raise ConfigError("sources 'draws' and 'exact' need collected draws; run `twistlm collect`, or use 'proposal'")
    return setting.collection
