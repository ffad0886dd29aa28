"""The steps of twisted sequential Monte Carlo, which `Sampler.smc` takes one after the other.

At step t every particle draws s_t ~ q_t(· | s_<t) and is weighted by ::

    log w_t = log p₀(s_t | s_<t) + log ψ_t(s_1:t) − log ψ_{t−1}(s_1:t−1) − log q_t(s_t | s_<t),

with ψ_0 = 1 and ψ_T replaced by φ, so that after T steps the particles target σ ∝ p₀ φ and exp(log_Z_hat) is an
unbiased estimate of Z (Zhao et al. 2024, section 3; Del Moral, 2004). Before a step, runs whose effective sample size
has fallen to `ess_threshold`·N are resampled, which sets every log weight to the run's log-mean: log_Z_hat is
log_mean_exp(log_w) at all times and nothing else is accumulated. `ess_threshold=0` never resamples (importance
sampling, IWAE bounds); `ess_threshold=1` resamples at every step.

With `retained`, slot 0 of each run holds a given sequence. If that is an exact sample of the target, this is
conditional SMC (Andrieu et al. 2010) and E[log_Z_hat] ≥ log Z: the upper bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from twistlm.core.errors import DeadParticlesError, ModelError
from twistlm.core.logmath import ess, log_mean_exp, normalise
from twistlm.core.rng import Rng
from twistlm.models.base import is_end
from twistlm.sampling.particles import Particles, SMCResult, StepInfo, select
from twistlm.sampling.proposals import Drawn, Proposal
from twistlm.sampling.resampling import Resampler, invert
from twistlm.sampling.states import State
from twistlm.sampling.twisted import TwistedLM


@dataclass(frozen=True)
class Keep:
    """What is kept of every token beside its densities.

    Attributes:
        features: the base model's features before it, for training a head without a second pass.
        siblings: K further draws of it.
    """

    features: bool = False
    siblings: int = 0


NOTHING = Keep()
# So few are not resampled by what weighs beside a twist: it gained nothing at four of them, and where φ is a hard
# threshold the runs that lose all hits made the spread two to four times as large (docs/informed.md).
FEWEST = 16


def lineages(infos: Sequence[StepInfo]) -> list[Tensor]:
    """For each step, the slots [R, N] in which the ancestors of the final particles were."""
    last = infos[-1].ancestors
    slots = [torch.arange(last.shape[1], device=last.device).expand_as(last)]
    for info in reversed(infos[1:]):
        slots.append(info.ancestors.gather(1, slots[-1]))
    return slots[::-1]


def along(slots: Sequence[Tensor], records: Sequence[Tensor]) -> Tensor:
    """What was recorded [R, N, …] at each step, along the `lineages` of the final particles: [R, N, T, …]."""
    return torch.stack([select(record, slot) for record, slot in zip(records, slots, strict=True)], 2)


def increments(result: SMCResult) -> Tensor:
    """log w_t of every token of the R·N sequences [R·N, T]; after resampling, that of the ancestors."""
    return along(lineages(result.infos), [info.log_increment for info in result.infos]).flatten(0, 1)


def init(model: TwistedLM, num_runs: int, num_particles: int, num_steps: int, device: torch.device) -> Particles:
    """R × N particles that have read their prompt: weight 1, ψ_0 = 1."""
    shape = (num_runs, num_particles)
    fill = model.absorbing if model.absorbing is not None else 0
    zeros = torch.zeros(shape, dtype=torch.float64, device=device)
    return Particles(
        tokens=torch.full((*shape, num_steps), fill, dtype=torch.long, device=device),
        length=0,
        log_w=zeros,
        log_psi=zeros,
        finished=torch.zeros(shape, dtype=torch.bool, device=device),
        log_p=zeros.new_zeros((*shape, num_steps)),
        log_q=zeros.new_zeros((*shape, num_steps)),
    )


def threshold(asked: float | None, num_particles: int, informed: bool) -> float:
    """The ESS, as a fraction of N, at which a run is resampled: what is asked for, by default ½.

    By default `informed` weights (`twistlm.twists.informed`) never resample fewer than `FEWEST` particles.
    """
    if asked is not None:
        return asked
    return 0.0 if informed and num_particles < FEWEST else 0.5


def resample(
    rng: Rng, particles: Particles, resampler: Resampler, ess_threshold: float, retained: bool
) -> tuple[Particles, Tensor, Tensor]:
    """Resample the runs whose ESS is at most `ess_threshold`·N; also returns ancestors [R, N] and which runs [R].

    A run without a living particle has none to choose, and stays as it is.
    """
    num_runs, num_particles = particles.log_w.shape
    ancestors = torch.arange(num_particles, device=particles.log_w.device).expand(num_runs, -1)
    size = ess(particles.log_w)
    resampled = (size <= ess_threshold * num_particles + 1e-9) & (size > 0) & (particles.length > 0)
    if not resampled.any():
        return particles, ancestors, resampled
    ancestors = ancestors.clone()
    ancestors[resampled] = resampler(rng, normalise(particles.log_w[resampled]), retained)
    # Every weight becomes the run's mean, taken before selection: Ẑ is unchanged.
    mean = log_mean_exp(particles.log_w).unsqueeze(-1).expand_as(particles.log_w)
    particles = particles.select(ancestors)
    return replace(particles, log_w=torch.where(resampled.unsqueeze(-1), mean, particles.log_w)), ancestors, resampled


def extend(model: TwistedLM, state: State, particles: Particles, ancestors: Tensor, resampled: Tensor) -> State:
    """Read the last token of every particle that is not finished."""
    num_runs, num_particles = ancestors.shape
    flat = None
    if resampled.any():
        flat = (ancestors + num_particles * torch.arange(num_runs, device=ancestors.device).unsqueeze(-1)).flatten()
    return model.extend(
        state, particles.tokens[:, :, particles.length - 1].flatten(), flat, particles.finished.flatten()
    )


def propose(
    rng: Rng,
    model: TwistedLM,
    state: State,
    particles: Particles,
    proposal: Proposal,
    retained: Tensor | None,
    num_siblings: int = 0,
    paused: Tensor | None = None,
) -> tuple[Particles, Drawn]:
    """Append one token to every particle: drawn, or EOS once finished, or the retained sequence's in slot 0.

    Slots that are `paused` [R, N] draw from p₀.
    """
    t, shape = particles.length, particles.log_w.shape
    forced = torch.full(shape, -1, device=particles.tokens.device)
    if retained is not None:
        forced[:, 0] = retained[:, t]
    if model.absorbing is not None:
        forced[particles.finished] = model.absorbing
    resting = None if paused is None else paused.flatten()
    drawn = model.draw(rng, state, proposal, forced.flatten(), num_siblings, resting)
    tokens, log_p, log_psi, log_q = (x.view(shape) for x in (drawn.tokens, drawn.log_p, drawn.log_psi, drawn.log_q))
    siblings = None if drawn.siblings is None else drawn.siblings.map(lambda x: x.unflatten(0, shape))
    if model.absorbing is not None:
        # A finished particle makes no choice: probability 1, and its twist stays what it was.
        log_p, log_q = log_p.masked_fill(particles.finished, 0.0), log_q.masked_fill(particles.finished, 0.0)
        log_psi = torch.where(particles.finished, particles.log_psi, log_psi)
    particles = replace(
        particles,
        tokens=_put(particles.tokens, t, tokens),
        log_p=_put(particles.log_p, t, log_p),
        log_q=_put(particles.log_q, t, log_q),
        length=t + 1,
    )
    if model.absorbing is not None:
        particles = replace(particles, finished=particles.finished | is_end(tokens, model.ends))
    return particles, Drawn(tokens, log_p, log_psi, log_q, siblings)


def weigh(particles: Particles, drawn: Drawn, log_phi: Tensor | None = None) -> tuple[Particles, Tensor]:
    """Multiply each weight by its increment towards π_t; `log_phi` [R, N] stands for log ψ_T at the last step."""
    log_numerator = drawn.log_psi if log_phi is None else log_phi
    log_increment = drawn.log_p + log_numerator - particles.log_psi - drawn.log_q
    # Dead particles stay dead: −inf − (−inf) is not a number.
    dead = particles.log_w.isneginf() | log_numerator.isneginf()
    log_increment = log_increment.masked_fill(dead, -torch.inf)
    return replace(particles, log_w=particles.log_w + log_increment, log_psi=drawn.log_psi), log_increment


def choose(rng: Rng, result: SMCResult) -> Tensor:
    """One particle of each run, chosen by weight: index [R]. Its law tends to the target as N grows."""
    weights = result.weights
    points = rng.uniform((weights.shape[0], 1), weights.cumsum(-1)).to(weights.device)
    return invert(weights, points).squeeze(-1)


def _put(values: Tensor, t: int, column: Tensor) -> Tensor:
    values = values.clone()
    values[:, :, t] = column
    return values


def refuse_dead(particles: Particles, num_steps: int, retained: bool, may_die: bool) -> None:
    """Raises DeadParticlesError where a run, or a retained sequence, has no weight; ModelError where one is NaN.

    `may_die`: a run may have none with a weight.
    """
    if retained and not particles.log_w[:, 0].isfinite().all():
        raise DeadParticlesError(
            f"at step {particles.length} of {num_steps} the twist or the potential gives weight zero to a retained "
            "sequence, so no finite upper bound exists; check that it is an exact sample of this very target"
        )
    if particles.log_w.isnan().any():
        raise ModelError(
            f"at step {particles.length} of {num_steps} weights are not numbers (NaN): the base model or the twist is "
            "broken; train it again, or restore its files"
        )
    dead = log_mean_exp(particles.log_w).isneginf()
    if dead.any() and not may_die:
        run_number = int(dead.nonzero()[0, 0])
        cause = "the potential is −inf (φ = 0)" if particles.length == num_steps else "the weight is zero"
        raise DeadParticlesError(
            f"{cause} for every particle of run {run_number} at step {particles.length} of {num_steps}; use more "
            "particles, train a twist, or soften the potential (a threshold with eps > 0)"
        )
