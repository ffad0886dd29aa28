"""Dense labels: the value of every prefix, and of tokens that were never followed up, in place of φ at the end.

φ of a finished sequence says the same of each of its prefixes, and says it with all the chance of what came after. Here
a value is fitted on draws that are there (`training.prefix_value`) and labels every prefix of some of them, and K
siblings of every token; where a sibling ends the text, its label is φ itself. With the exact value the optimum of every
loss stays where it was, and each draw teaches K + 1 tokens at every step.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from twistlm.core.logmath import log_mean_exp
from twistlm.core.progress import bar
from twistlm.core.rng import Rng
from twistlm.models.base import Prompts
from twistlm.potentials.base import evaluate
from twistlm.potentials.prefixes import prefix_scores, scores_prefixes, softened
from twistlm.sampling.cases import Cases, rows_of
from twistlm.sampling.mixture import Pool
from twistlm.sampling.proposals import defensive
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.samples import Samples, Siblings
from twistlm.training.draws import Draws, chosen
from twistlm.training.prefix_value import Fitted, Words, fit

# Siblings of each token, drawn from q with a share of p₀. Of what the potential is asked, the part that the fit takes.
NUM_SIBLINGS, SHARE, FITTED = 8, 0.25, 1 / 2


@dataclass(frozen=True)
class Values:
    """log V of the prefixes of B sequences [B, T], and of their siblings [B, T, K]; E_p₀[V_t] is Z at every t."""

    own: Tensor
    siblings: Tensor

    def select(self, index: Tensor) -> "Values":
        """Those of the sequences at `index`."""
        return Values(self.own[index], self.siblings[index])


@dataclass(frozen=True)
class Dense:
    """n sequences with siblings of every token, and labels of both.

    Attributes:
        samples: the sequences.
        log_ratio: log p₀(s_1:t), less the log density that it was drawn from [n, T].
        values: the labels.
        record: what was fitted, for the history.
    """

    samples: Samples
    log_ratio: Tensor
    values: Values
    record: dict[str, Any]


def labelled(rng: Rng, sampler: Sampler, pool: Pool, cases: Cases, count: int) -> Dense:
    """Labels on a part of the pool's draws.

    Args:
        rng: of which draws are labelled, and of their siblings.
        sampler: whose twist, as it is, draws siblings and is a feature of the value.
        pool: the draws.
        cases: the targets.
        count: how many prefixes the potential is asked about, at most, about: half of them for the fit.
    """
    sampler = replace(sampler, informed=None)
    groups = rows_of(pool.samples.prompts, cases)
    there = Draws(pool.samples, pool.log_ratio, pool.final_log_ratio + pool.samples.log_phi, groups)
    texts = count / (sampler.num_steps * len(cases))
    fits = _fitted(sampler, chosen(rng.fork("fitted"), there, max(1, int(FITTED * texts))))
    draws = chosen(rng.fork("labelled"), there, max(1, int((1 - FITTED) * texts / (1 + NUM_SIBLINGS))))
    return _labels(rng.fork("siblings"), sampler, draws, fits)


@dataclass(frozen=True)
class _Fits:
    """The fit of each step but the last, and what brings the mean of V_t to Z, for each target [R, T − 1]."""

    steps: list[Fitted]
    offsets: Tensor


def _fitted(sampler: Sampler, draws: Draws) -> _Fits:
    """Fit the value of every prefix but whole sequences, whose is φ."""
    samples, words = draws.samples, Words(sampler.model.lm)
    features = _features(sampler, samples)
    found = sampler.densities(replace(samples, features=features, siblings=None))
    gone = (found.log_q - found.log_p).cumsum(-1)
    own = softened(sampler.model.carried(found.log_psi, samples.mask))
    steps: list[Fitted] = []
    offsets = torch.zeros((len(draws.groups), sampler.num_steps - 1), dtype=torch.float64, device=gone.device)
    log_Z = [_log_mean(draws.log_w[index]) - _log_mean(draws.log_ratio[index, -1]) for index in draws.groups]
    with bar("fitting the value of prefixes", sampler.num_steps - 1) as report:
        for t in range(sampler.num_steps - 1):
            told = torch.stack(
                [gone[:, t], own[:, t], _asked(sampler, samples.prompts, samples.tokens[:, : t + 1])], -1
            )
            more = words.beside(samples.tokens[:, t], features[:, t])
            steps.append(fit([told, *more], draws.log_ratio[:, t], draws.log_w, draws.groups))
            numbers = steps[-1].numbers
            log_V = told @ numbers[:3] + words.value(samples.tokens[:, t], features[:, t], numbers[3:])
            for r, index in enumerate(draws.groups):
                ratio = draws.log_ratio[index, t]
                offsets[r, t] = log_Z[r] - _log_mean(ratio + log_V[index]) + _log_mean(ratio)
            report(t + 1, f"{steps[-1].gain:.2f} nats")
    return _Fits(steps, offsets)


def _labels(rng: Rng, sampler: Sampler, draws: Draws, fits: _Fits) -> Dense:
    """Labels of the draws' own prefixes and of siblings."""
    samples, words, model = draws.samples, Words(sampler.model.lm), sampler.model
    samples = replace(samples, features=_features(sampler, samples), siblings=None)
    assert samples.features is not None
    siblings = model.densities(samples, defensive(SHARE), NUM_SIBLINGS, rng).siblings
    assert siblings is not None
    # A text that has ended has one way to go on.
    going = samples.mask.unsqueeze(-1)
    siblings = Siblings(
        torch.where(going, siblings.tokens, samples.tokens.unsqueeze(-1)), torch.where(going, siblings.log_ratio, 0.0)
    )
    with torch.no_grad():
        log_psi = model.score(replace(samples, siblings=siblings)).siblings
    assert log_psi is not None
    found = sampler.densities(samples)
    # The first of 1 + K children is the draw itself.
    tokens = torch.cat([samples.tokens.unsqueeze(-1), siblings.tokens], -1)
    psi = torch.cat([found.log_psi.unsqueeze(-1), log_psi.double()], -1)
    # log(q/p₀) of a token is log ψ less the logarithm of their sum, which all children of a prefix share.
    step = found.log_q - found.log_p
    gone = (step.cumsum(-1) - found.log_psi).unsqueeze(-1) + psi
    owner = torch.zeros(len(samples), dtype=torch.long, device=tokens.device)
    for r, index in enumerate(draws.groups):
        owner[index] = r
    log_V, shape = torch.empty(tokens.shape, dtype=torch.float64, device=tokens.device), tokens[:, 0].shape
    with bar("labelling siblings", sampler.num_steps) as report:
        for t in range(sampler.num_steps):
            before = samples.tokens[:, None, :t].expand(*shape, t)
            prefixes = torch.cat([before, tokens[:, t].unsqueeze(-1)], -1).flatten(0, 1)
            of = _Rows(sampler, samples, shape[1])
            if t == sampler.num_steps - 1:
                log_V[:, t] = of.log_phi(prefixes).view(shape)
                break
            told = torch.stack([gone[:, t], softened(psi[:, t]), of.scores(prefixes).view(shape)], -1)
            numbers = fits.steps[t].numbers
            value = told @ numbers[:3] + words.value(tokens[:, t], samples.features[:, t], numbers[3:])
            log_V[:, t] = value + fits.offsets[owner, t].unsqueeze(-1)
            ended = ~model.mask(torch.cat([prefixes, prefixes[:, -1:]], -1))[:, -1]
            if bool(ended.any()):
                # A text that has ended has φ, and no value that would have to be learned.
                log_V[:, t][ended.view(shape)] = of.log_phi(prefixes, ended)
            report(t + 1, f"of {tokens[:, 0].numel()} texts each")
    bound = None if sampler.potential is None else sampler.potential.log_upper_bound
    # No mean of φ is above what φ can be.
    log_V = log_V if bound is None else log_V.clamp_max(bound)
    labels = Values(log_V[..., 0], log_V[..., 1:])
    record = {
        "gains": [each.gain for each in fits.steps],
        "numbers": [each.numbers[:3].tolist() for each in fits.steps],
        "sequences": len(samples),
    }
    return Dense(replace(samples, siblings=siblings), draws.log_ratio, labels, record)


@dataclass(frozen=True)
class _Rows:
    """What the potential says of texts that go on from sequences, `each` of them one after the other."""

    sampler: Sampler
    samples: Samples
    each: int

    def scores(self, prefixes: Tensor) -> Tensor:
        """Of unfinished texts [B·each, t]."""
        repeated = [prompt for prompt in self.samples.prompts for _ in range(self.each)]
        return _asked(self.sampler, repeated, prefixes)

    def log_phi(self, prefixes: Tensor, chosen: Tensor | None = None) -> Tensor:
        """log φ of those texts that have ended, the chosen ones of them."""
        index = torch.arange(len(prefixes)) if chosen is None else chosen.nonzero().squeeze(-1).cpu()
        texts = prefixes[index]
        missing = self.sampler.num_steps - texts.shape[1]
        texts = torch.cat([texts, texts[:, -1:].expand(-1, missing)], -1)
        prompts = [self.samples.prompts[at // self.each] for at in index.tolist()]
        assert self.sampler.potential is not None
        return evaluate(self.sampler.potential, prompts, texts).to(prefixes.device)


def _asked(sampler: Sampler, prompts: Prompts, prefixes: Tensor) -> Tensor:
    """The potential's scores of prefixes, 0 where it has none."""
    if not scores_prefixes(sampler.potential):
        return torch.zeros(len(prefixes), dtype=torch.float64, device=prefixes.device)
    assert sampler.potential is not None
    return prefix_scores(sampler.potential, prompts, prefixes).to(prefixes.device)


def _features(sampler: Sampler, samples: Samples) -> Tensor:
    """The base model's features before each token, recorded or recomputed."""
    if samples.features is not None:
        return samples.features
    return sampler.model.base_features(samples.prompts, samples.tokens)


def _log_mean(log_w: Tensor) -> float:
    return float(log_mean_exp(log_w, 0))
