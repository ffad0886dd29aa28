"""Twisted sequential Monte Carlo: one implementation for sampling, bounds and training alike.

At step t every particle draws s_t ~ q_t(· | s_<t) and is weighted by

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
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from twistlm.core.errors import ConfigError, DeadParticlesError, ModelError
from twistlm.core.logmath import ess, log_mean_exp, normalise
from twistlm.core.rng import Rng
from twistlm.core.sizes import TOKEN_BYTES, check_sizes
from twistlm.models.base import Prompts
from twistlm.potentials.base import evaluate
from twistlm.potentials.protocol import Potential
from twistlm.sampling.particles import Particles, SMCResult, StepInfo, select
from twistlm.sampling.proposals import Drawn, Proposal, twist_induced
from twistlm.sampling.resampling import Resampler, invert, systematic
from twistlm.sampling.samples import Samples, Siblings
from twistlm.sampling.twisted import State, TwistedLM


def run(
    rng: Rng,
    model: TwistedLM,
    potential: Potential | None,
    *,
    prompts: Prompts,
    num_particles: int,
    num_steps: int,
    proposal: Proposal = twist_induced,
    resampler: Resampler = systematic,
    ess_threshold: float = 0.5,
    retained: Tensor | None = None,
    conditions: Tensor | None = None,
    record_features: bool = False,
    num_siblings: int = 0,
    paused: Tensor | None = None,
) -> SMCResult:
    """R independent SMC runs, one per prompt, of N particles and T steps, in one batch.

    Args:
        rng: source of randomness.
        model: base model and twist.
        potential: φ, bound to the model; None for φ = 1.
        prompts: R prompts; lengths may differ, equal ones are read once.
        num_particles: N ≥ 1.
        num_steps: T ≥ 1 new tokens.
        proposal: q_t; by default ∝ p₀ ψ_t.
        resampler: resampling scheme; it needs a conditional form if `retained` is given.
        ess_threshold: resample when ESS ≤ this fraction of N; 0 never, 1 always.
        retained: tokens [R, T] kept in slot 0 of each run (conditional SMC), or None.
        conditions: [R, c], what each run's target is given, for a potential that needs it; None otherwise.
        record_features: keep the features before each token, for training a head without a second pass.
        num_siblings: K further draws of every token to keep, for training.
        paused: steps [R, N, T] at which a slot draws from p₀ instead of the proposal; None for none.

    Raises:
        ConfigError: N, T or the threshold is out of range, or `retained` has the wrong shape.
        PromptError: a prompt is empty or too long.
        DeadParticlesError: every particle of a run has weight zero.
        ModelError: the model or the twist gives NaN.
        PotentialError: the potential raised or returned something that is not a log potential.
        ResamplingError: `retained` with a resampler that has no conditional form.
    """
    _check(num_particles, ess_threshold, retained, (len(prompts), num_steps))
    model.check(prompts, num_steps)
    state = model.start(prompts, num_particles, num_steps, conditions)
    device = state.lm.features.device
    retained = None if retained is None else retained.to(device)
    particles = init(model, len(prompts), num_particles, num_steps, device)
    infos: list[StepInfo] = []
    frames: list[Tensor] = []
    families: list[Siblings] = []
    for t in range(num_steps):
        particles, ancestors, resampled = resample(rng, particles, resampler, ess_threshold, retained is not None)
        if t > 0:
            state = extend(model, state, particles, ancestors, resampled)
        if record_features:
            frames.append(state.lm.features[state.rows].unflatten(0, ancestors.shape))
        resting = None if paused is None else paused[:, :, t].to(device)
        particles, drawn = propose(rng, model, state, particles, proposal, retained, num_siblings, resting)
        if drawn.siblings is not None:
            families.append(drawn.siblings)
        log_psi = drawn.log_psi
        if t == num_steps - 1:
            log_psi = torch.zeros_like(log_psi)
            if potential is not None:
                owners = [prompt for prompt in prompts for _ in range(num_particles)]
                given = None if conditions is None else conditions.repeat_interleave(num_particles, 0)
                values = evaluate(potential, owners, particles.tokens.flatten(0, 1), given)
                log_psi = values.to(device).view_as(log_psi)
        particles, log_increment = weigh(particles, drawn, log_psi)
        _refuse_dead(particles, num_steps, retained is not None)
        infos.append(StepInfo(ancestors, log_increment, ess(particles.log_w), resampled, particles.tokens[:, :, t]))
    if frames or families:
        slots = lineages(infos)
        particles = replace(
            particles,
            features=along(slots, frames) if frames else None,
            siblings=Siblings.combined(families, partial(along, slots)),
        )
    return SMCResult(particles, tuple(infos), log_psi)


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


def resample(
    rng: Rng, particles: Particles, resampler: Resampler, ess_threshold: float, retained: bool
) -> tuple[Particles, Tensor, Tensor]:
    """Resample the runs whose ESS is at most `ess_threshold`·N; also returns ancestors [R, N] and which runs [R]."""
    num_runs, num_particles = particles.log_w.shape
    ancestors = torch.arange(num_particles, device=particles.log_w.device).expand(num_runs, -1)
    resampled = (ess(particles.log_w) <= ess_threshold * num_particles + 1e-9) & (particles.length > 0)
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
        particles = replace(particles, finished=particles.finished | (tokens == model.absorbing))
    return particles, Drawn(tokens, log_p, log_psi, log_q, siblings)


def weigh(particles: Particles, drawn: Drawn, log_psi: Tensor) -> tuple[Particles, Tensor]:
    """Multiply each weight by its increment towards π_t, whose twist is `log_psi` [R, N] (log φ at the last step)."""
    log_increment = drawn.log_p + log_psi - particles.log_psi - drawn.log_q
    # Dead particles stay dead: −inf − (−inf) is not a number.
    dead = particles.log_w.isneginf() | log_psi.isneginf()
    log_increment = log_increment.masked_fill(dead, -torch.inf)
    return replace(particles, log_w=particles.log_w + log_increment, log_psi=log_psi), log_increment


def choose(rng: Rng, result: SMCResult) -> Tensor:
    """One particle of each run, chosen by weight: index [R]. Its law tends to the target as N grows."""
    weights = result.weights
    points = rng.uniform((weights.shape[0], 1), weights.cumsum(-1)).to(weights.device)
    return invert(weights, points).squeeze(-1)


def to_samples(result: SMCResult, prompts: Prompts, model: TwistedLM, conditions: Tensor | None = None) -> Samples:
    """The R·N sequences with the densities they were drawn with; resampling's weights stay in `result`."""
    particles = result.particles
    num_particles = particles.log_w.shape[1]
    tokens = particles.tokens.flatten(0, 1)
    return Samples(
        prompts=[prompt for prompt in prompts for _ in range(num_particles)],
        tokens=tokens,
        mask=model.mask(tokens),
        log_p=particles.log_p.flatten(0, 1),
        log_q=particles.log_q.flatten(0, 1),
        log_phi=result.log_phi.flatten(),
        features=None if particles.features is None else particles.features.flatten(0, 1),
        siblings=None if particles.siblings is None else particles.siblings.map(lambda x: x.flatten(0, 1)),
        conditions=None if conditions is None else conditions.repeat_interleave(num_particles, 0),
    )


def _put(values: Tensor, t: int, column: Tensor) -> Tensor:
    values = values.clone()
    values[:, :, t] = column
    return values


def _check(num_particles: int, ess_threshold: float, retained: Tensor | None, shape: tuple[int, int]) -> None:
    check_sizes(TOKEN_BYTES * shape[0] * shape[1], num_particles=num_particles)
    if not 0.0 <= ess_threshold <= 1.0:
        raise ConfigError(f"ess_threshold must be between 0 (never resample) and 1 (always), not {ess_threshold}")
    if retained is not None and tuple(retained.shape) != shape:
        raise ConfigError(f"retained must have shape [R, T] = {list(shape)}, not {list(retained.shape)}")


def _refuse_dead(particles: Particles, num_steps: int, retained: bool) -> None:
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
    if dead.any():
        run_number = int(dead.nonzero()[0, 0])
        cause = "the potential is −inf (φ = 0)" if particles.length == num_steps else "the weight is zero"
        raise DeadParticlesError(
            f"{cause} for every particle of run {run_number} at step {particles.length} of {num_steps}; use more "
            "particles, train a twist, or soften the potential (a threshold with eps > 0)"
        )
