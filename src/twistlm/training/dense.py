"""Dense labels: the value of every prefix, and of tokens that were never followed up, in place of φ at the end.

φ of a finished sequence says the same of each of its prefixes, and says it with all the chance of what came after. Here
a value is fitted on draws that are there (`training.prefix_value`) and labels every prefix of some of them, and K
siblings of every token; where a sibling ends the text, its label is φ itself. With the exact value the optimum of every
loss stays where it was, and each draw teaches K + 1 tokens at every step. Controlled decoding, whose optimum is
E[log φ], has labels of that.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from twistlm.core.logmath import log_mean_exp, normalise
from twistlm.core.progress import bar
from twistlm.core.rng import Rng
from twistlm.models.base import Prompts
from twistlm.potentials.base import evaluate
from twistlm.potentials.prefixes import known_scores, softened
from twistlm.sampling.cases import Cases
from twistlm.sampling.mixture import Pool
from twistlm.sampling.proposals import defensive
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.samples import Samples, Siblings
from twistlm.training.draws import Draws, chosen
from twistlm.training.losses import finite
from twistlm.training.prefix_value import Fitted, Words, fit, fit_mean
from twistlm.twists.informed import FEWEST, Prefixes

# Siblings of each token, drawn from q with a share of p₀. Of what the potential is asked, the part that the fit takes.
NUM_SIBLINGS, SHARE, FITTED = 8, 0.25, 1 / 2
# Where next to no draw is effective, one has no more than a part in so many of the weight, and enough are.
PARTS = 32.0


@dataclass(frozen=True)
class Values:
    """log V of the prefixes of B sequences [B, T], and of their siblings [B, T, K].

    E_p₀[V_t] is Z at every t, or the mean of log V_t is that of log φ.
    """

    own: Tensor
    siblings: Tensor

    def select(self, index: Tensor) -> "Values":
        """Those of the sequences at `index`."""
        return Values(self.own[index], self.siblings[index])


@dataclass(frozen=True)
class Dense:
    """n sequences with siblings of every token, and labels of both.

    Attributes:
        samples: the sequences; log φ of those that were truncated is lowered.
        log_ratio: log p₀(s_1:t), less the log density that it was drawn from [n, T].
        values: the labels.
        record: what was fitted, for the history.
    """

    samples: Samples
    log_ratio: Tensor
    values: Values
    record: dict[str, Any]


def labelled(rng: Rng, sampler: Sampler, pool: Pool, cases: Cases, count: int, *, mean_log: bool = False) -> Dense:
    """Labels on a part of the pool's draws.

    Args:
        rng: of which draws are labelled, and of their siblings.
        sampler: whose twist, as it is, draws siblings and is a feature of the value.
        pool: the draws.
        cases: the targets.
        count: how many prefixes the potential is asked about, at most, about: half of them for the fit.
        mean_log: labels are E_p₀[log φ | s_1:t], and not log E_p₀[φ | s_1:t].
    """
    sampler, words = replace(sampler, informed=None), Words(sampler.model.lm)
    there, texts = Draws.of(pool, cases), count / (sampler.num_steps * len(cases))
    if there.effective < FEWEST:
        # A fit to so few would be refused.
        there = Draws.of(pool.truncated(cases, PARTS), cases)
    fits = _fitted(sampler, words, chosen(rng.fork("fitted"), there, max(1, int(FITTED * texts))), mean_log)
    draws = chosen(rng.fork("labelled"), there, max(1, int((1 - FITTED) * texts / (1 + NUM_SIBLINGS))))
    return _labels(rng.fork("siblings"), sampler, words, draws, fits)


@dataclass(frozen=True)
class _Fits:
    """The fit of each step but the last, and for each target what brings its mean to φ's, or log φ's [R, T − 1]."""

    steps: list[Fitted]
    offsets: Tensor


def _fitted(sampler: Sampler, words: Words, draws: Draws, mean_log: bool) -> _Fits:
    """Fit the value of every prefix but whole sequences, whose is φ."""
    samples = replace(draws.samples, features=sampler.model.recorded_features(draws.samples))
    draws = replace(draws, samples=samples)
    assert samples.features is not None
    gone, own = draws.steered(sampler)
    steps: list[Fitted] = []
    offsets = torch.zeros((len(draws.groups), sampler.num_steps - 1), dtype=torch.float64, device=gone.device)
    whole, log_phi = draws.log_ratio[:, -1], finite(samples.log_phi) if mean_log else samples.log_phi
    wanted = [_average(whole[index], log_phi[index], mean_log) for index in draws.groups]
    unit = "of the variance" if mean_log else "nats"
    with bar("fitting the value of prefixes", sampler.num_steps - 1) as report:
        for t in range(sampler.num_steps - 1):
            score = known_scores(sampler.potential, samples.prompts, samples.tokens[:, : t + 1])
            told = torch.stack([gone[:, t], own[:, t], score], -1)
            tokens, features = samples.tokens[:, t], samples.features[:, t]
            ratio = whole if mean_log else draws.log_ratio[:, t]
            described = torch.cat([told, *[part.double() for part in words.beside(tokens, features)]], 1)
            if mean_log:
                steps.append(fit_mean(described, log_phi, ratio, draws.groups))
            else:
                steps.append(fit(Prefixes(described, ratio, draws.log_w, draws.groups)))
            log_V = words.value(told, tokens, features, steps[-1].numbers)
            for r, index in enumerate(draws.groups):
                offsets[r, t] = wanted[r] - _average(ratio[index], log_V[index], mean_log)
            report(t + 1, f"{steps[-1].gain:.2f} {unit}")
    return _Fits(steps, offsets)


def _labels(rng: Rng, sampler: Sampler, words: Words, draws: Draws, fits: _Fits) -> Dense:
    """Labels of the draws' own prefixes and of siblings."""
    model, last = sampler.model, sampler.num_steps - 1
    samples = replace(draws.samples, features=model.recorded_features(draws.samples), siblings=None)
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
    shape = tokens[:, 0].shape
    prompts = [prompt for prompt in samples.prompts for _ in range(shape[1])]
    log_V = torch.empty(tokens.shape, dtype=torch.float64, device=tokens.device)
    with bar("labelling siblings", sampler.num_steps) as report:
        for t in range(sampler.num_steps):
            before = samples.tokens[:, None, :t].expand(*shape, t)
            prefixes = torch.cat([before, tokens[:, t].unsqueeze(-1)], -1).flatten(0, 1)
            ended = ~model.mask(torch.cat([prefixes, prefixes[:, -1:]], -1))[:, -1] | (t == last)
            if t < last:
                score = known_scores(sampler.potential, prompts, prefixes).view(shape)
                told = torch.stack([gone[:, t], softened(psi[:, t]), score], -1)
                log_value = words.value(told, tokens[:, t], samples.features[:, t], fits.steps[t].numbers)
                log_V[:, t] = log_value + fits.offsets[owner, t].unsqueeze(-1)
            if bool(ended.any()):
                # A text that has ended has φ, and no value that would have to be learned.
                log_V[:, t][ended.view(shape)] = _log_phi(sampler, prompts, prefixes, ended)
            report(t + 1, f"of {len(prefixes)} texts each")
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


def _log_phi(sampler: Sampler, prompts: Prompts, prefixes: Tensor, ended: Tensor) -> Tensor:
    """log φ of those texts that have `ended`, after which their last token comes again and again."""
    assert sampler.potential is not None
    index = ended.nonzero().squeeze(-1)
    texts = prefixes[index]
    texts = torch.cat([texts, texts[:, -1:].expand(-1, sampler.num_steps - texts.shape[1])], -1)
    return evaluate(sampler.potential, [prompts[at] for at in index.tolist()], texts).to(prefixes.device)


def _average(log_ratio: Tensor, log_V: Tensor, mean_log: bool) -> float:
    """log E_p₀[V], or E_p₀[log V], by n draws of those log p₀/q, self-normalised."""
    if mean_log:
        return float(normalise(log_ratio) @ log_V)
    return float(log_mean_exp(log_ratio + log_V, 0) - log_mean_exp(log_ratio, 0))
