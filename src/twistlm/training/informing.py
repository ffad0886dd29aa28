"""Learn what weighs beside a twist (`twists.informed`), from base draws and from draws of the finished twist.

Both are weighed against the mixture of the two (multiple importance sampling with the balance heuristic: Veach and
Guibas, 1995), so that what p₀ hardly ever writes and what the twist does not write are both there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from twistlm.core.errors import ConfigError
from twistlm.core.logmath import normalise
from twistlm.core.progress import bar
from twistlm.core.rng import Rng
from twistlm.potentials.prefixes import known_scores, scores_prefixes, softened
from twistlm.sampling.cases import Cases, rows_of
from twistlm.sampling.exact.collect import base_draws
from twistlm.sampling.mixture import Pool
from twistlm.sampling.resampling import invert, stratified_points
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.samples import Samples
from twistlm.sampling.smc import Keep
from twistlm.twists.informed import Informed, Prefixes, fit

# Sequences of which the prefixes are scored: at least, and at most. Targets among which they are divided.
FEWEST, MOST, MOST_TARGETS = 128, 2048, 16
# Of those that are drawn, and weighed, this many times the number are the base model's, where they are there already.
COLLECTED = 1.5
# φ of how many prefixes of a text is asked for, if nobody says which.
MOST_ASKED = 10
# What sampling made of each prefix, which weighing it needs again.
FEATURES = Keep(features=True)

Every = int | str
"""How often the potential is asked: after every so many tokens, "auto" for ten times at most, "never", or "off"."""


@dataclass(frozen=True)
class Draws:
    """n sequences with log p₀/q̄ of their prefixes [n, T], log p₀φ/q̄ [n] and the rows of each target."""

    samples: Samples
    log_ratio: Tensor
    log_w: Tensor
    groups: Sequence[Tensor]

    @staticmethod
    def of(pool: Pool, cases: Cases) -> "Draws":
        """A pool's, with the rows of each of some targets."""
        log_ratio = pool.log_ratio
        log_w = log_ratio[:, -1] + pool.samples.log_phi
        return Draws(pool.samples, log_ratio, log_w, rows_of(pool.samples.prompts, cases))

    def steered(self, sampler: Sampler) -> tuple[Tensor, Tensor]:
        """What is told of prefixes by `sampler`'s twist: log(q/p₀), and log ψ, finite, of each [n, T]."""
        found = sampler.densities(replace(self.samples, siblings=None))
        log_psi = sampler.model.carried(found.log_psi, self.samples.mask)
        return (found.log_q - found.log_p).cumsum(-1), softened(log_psi)


def chosen(rng: Rng, there: Draws, each: int) -> Draws:
    """About so many of each target: those that matter more often than others."""
    # Half evenly and half by weight, and the ratios make up for it: prefixes are dear. A draw that is chosen several
    # times is there once, or a fit would be judged by what it was fitted to.
    rows, ratios, groups, so_far = [], [], [], 0
    for number, index in enumerate(there.groups):
        evenly = torch.full((len(index),), 1 / len(index), dtype=torch.float64)
        weights = normalise(there.log_w[index]).cpu()
        chance = (evenly + weights) / 2 if bool(weights.any()) else evenly
        points = stratified_points(rng.fork("chosen", number), 1, each)
        picked, copies = invert(chance.unsqueeze(0), points)[0].unique(return_counts=True)
        rows.append(index[picked])
        ratios.append((evenly / chance).log()[picked] + copies.log())
        groups.append(torch.arange(so_far, so_far := so_far + len(picked)))
    picks, more = torch.cat(rows), torch.cat(ratios).to(there.log_w.device)
    return Draws(
        there.samples.select(picks),
        there.log_ratio[picks] + more.unsqueeze(-1),
        there.log_w[picks] + more,
        groups,
    )


def check_every(every: Every) -> None:
    """Raise ConfigError unless `every` is a positive number or one of the words."""
    number = isinstance(every, int) and not isinstance(every, bool)
    if (number and int(every) < 1) or (not number and every not in ("auto", "never", "off")):
        raise ConfigError(f"informed must be 'auto', 'never', 'off' or a number of tokens from 1 on, not {every!r}")


def inform(
    rng: Rng,
    sampler: Sampler,
    cases: Cases,
    count: int = MOST,
    every: Every = "auto",
    *,
    collected: Samples | None = None,
    pool: Pool | None = None,
    targets: Cases | None = None,
) -> tuple[Informed, dict[str, Any]]:
    """What weighs beside the twist of `sampler`, and what was found.

    Args:
        rng: of the draws.
        sampler: with the finished twist.
        cases: prompts to learn it at; what they are given, where targets differ, is drawn.
        count: sequences of which the prefixes are scored, about; 128 to 2,048.
        every: how often the potential is asked about a text that is being written; it is not if it cannot tell
            ("never" has the same effect). Weights are fitted all the same.
        collected: base draws that are there already.
        pool: all draws that training has made, which take the place of base draws.
        targets: prompts that the pool has draws of, if those are more than `cases`.

    Returns:
        The numbers; and for the history the steps, by how many nats each is better known than by q alone, and how many
        sequences it took.
    """
    check_every(every)
    asks = scores_prefixes(sampler.potential) and every != "never"
    plain = replace(sampler, informed=None, ess_threshold=0.0)
    count = min(max(count, FEWEST), MOST)
    if sampler.is_conditional:
        draws = _conditional(rng, plain, cases, count)
    else:
        some = cases[:MOST_TARGETS]
        if pool is None:
            there = _drawn(rng, plain, some, count, collected)
        else:
            # A pool grows at all of its prompts, or its mixture would differ from one to another.
            pool = pool.grown(rng.fork("own"), plain, cases if targets is None else targets, count // 2)
            there = Draws.of(pool, some)
        draws = chosen(rng, there, count // len(some))
    gone, own = draws.steered(sampler)
    steps, numbers, gains = [], [], []
    asked = _steps(sampler.num_steps, every if asks else 1)
    with bar("fitting what weighs beside the twist", len(asked)) as report:
        for done, t in enumerate(asked):
            potential, samples = sampler.potential if asks else None, draws.samples
            score = known_scores(potential, samples.prompts, samples.tokens[:, :t], samples.conditions)
            # Three numbers a prefix, wherever the model lives.
            features = torch.stack([each.cpu() for each in (gone[:, t - 1], own[:, t - 1], score)], -1)
            number, gain = fit(Prefixes(features, draws.log_ratio[:, t - 1].cpu(), draws.log_w.cpu(), draws.groups))
            if gain > 0:
                steps.append(t)
                numbers.append(number)
                gains.append(gain)
            report(done + 1, f"{len(steps)} steps")
    rows = torch.stack(numbers) if numbers else torch.zeros((0, 3), dtype=torch.float64)
    informed = Informed(tuple(steps), rows)
    return informed, {**informed.as_dict(), "gains": gains, "asks": asks, "sequences": len(draws.samples)}


def _steps(num_steps: int, every: Every) -> list[int]:
    """The steps after which the potential is asked: the last but one, and back from there."""
    stride = int(every) if isinstance(every, int) else max(1, math.ceil((num_steps - 1) / MOST_ASKED))
    return list(range(num_steps - 1, 0, -stride))[::-1]


def _drawn(rng: Rng, sampler: Sampler, cases: Cases, count: int, collected: Samples | None) -> Draws:
    """Draws of each prompt: the base model's, and the twist's own."""
    each = count // len(cases)
    rows = [] if collected is None else rows_of(collected.prompts, cases)
    if collected is None or not all(map(len, rows)):
        base = sampler.base.draw(rng.fork("base"), cases, each // 2, keep=FEATURES)
    else:
        base = collected.select(torch.cat([index[: int(COLLECTED * each)] for index in rows]))
    own = sampler.draw(rng.fork("own"), cases, each // 2, keep=FEATURES)
    samples = _joined(base, own)
    return _weighed(sampler, samples, rows_of(samples.prompts, cases), torch.arange(len(samples)) < len(base))


def _joined(base: Samples, own: Samples) -> Samples:
    """Both, with what the base model made of their prefixes if both have it: reading them again is dear."""
    parts = (base, own)
    known = all(part.features is not None for part in parts)
    return Samples.concatenate(
        [replace(part, features=part.features if known else None, siblings=None) for part in parts]
    )


def _conditional(rng: Rng, sampler: Sampler, cases: Cases, count: int) -> Draws:
    """Draws of both kinds for each of some conditions, which come as the base model gives them."""
    given = base_draws(rng.fork("conditions"), sampler, cases[:1], MOST_TARGETS).cases
    each = count // (2 * len(given))
    base = sampler.base.draw(rng.fork("base"), given, each, keep=FEATURES)
    own = sampler.draw(rng.fork("own"), given, each, keep=FEATURES)
    # Of each target first the base draws, then its own.
    order = torch.arange(2 * len(given) * each).view(2, len(given), each).transpose(0, 1).flatten()
    samples = _joined(base, own).select(order)
    groups = list(torch.arange(len(order)).view(len(given), -1))
    return _weighed(sampler, samples, groups, order < len(order) // 2)


def _weighed(sampler: Sampler, samples: Samples, groups: list[Tensor], base: Tensor) -> Draws:
    """Against the mixture of p₀ and q in which each target's draws were made; `base` [n]: those that are p₀'s."""
    found = sampler.densities(samples)
    log_p, log_q = found.log_p.cumsum(-1), found.log_q.cumsum(-1)
    share = torch.empty((len(samples), 1), dtype=torch.float64)
    for index in groups:
        share[index] = base[index].double().mean()
    share = share.to(log_p.device)
    log_ratio = log_p - torch.logaddexp(log_p + share.log(), log_q + (1 - share).log())
    return Draws(samples, log_ratio, log_ratio[:, -1] + samples.log_phi, groups)
