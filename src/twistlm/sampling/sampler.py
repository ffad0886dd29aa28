"""A sampler: a model, the potential, and how the two are sampled. Everything that draws or certifies takes one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from twistlm.core.errors import ConfigError, PromptError
from twistlm.core.kernels.threads import asked, side_by_side
from twistlm.core.logmath import ess
from twistlm.core.rng import Rng
from twistlm.core.sizes import TOKEN_BYTES, check_sizes, even
from twistlm.potentials.base import evaluate
from twistlm.potentials.conditions import is_conditional
from twistlm.potentials.prefixes import prefix_scores, softened
from twistlm.potentials.protocol import Potential
from twistlm.sampling import smc
from twistlm.sampling.cases import Cases, conditions_of, prompts_of
from twistlm.sampling.particles import Particles, SMCResult, StepInfo, select
from twistlm.sampling.proposals import Drawn, Proposal, base, twist_induced
from twistlm.sampling.ranges import Ranges
from twistlm.sampling.resampling import Resampler, systematic
from twistlm.sampling.samples import Samples, Siblings
from twistlm.sampling.smc import NOTHING, Keep
from twistlm.sampling.twisted import TwistedLM
from twistlm.twists.informed import Informed

R = TypeVar("R")
# Sequences drawn at a time; part of what a seed reproduces.
BATCH = 512


@dataclass(frozen=True)
class Sampler:
    """A model with a target, and a way from the one to the other.

    Attributes:
        model: base model and twist; without a twist, the base model itself. Or another model altogether.
        potential: φ, bound to the base model; None for φ = 1.
        num_steps: T ≥ 1 new tokens.
        proposal: q_t; by default ∝ p₀ ψ_t.
        resampler: scheme of SMC; it needs a conditional form where a sequence is retained.
        ess_threshold: SMC resamples when ESS ≤ this fraction of N; 0 never, 1 at every step. By default ½, and never
            with fewer than `smc.FEWEST` particles by what weighs beside a twist.
        informed: what weighs beside the twist where SMC may resample; None for the twist alone.
        reference: p₀, where `model` is another language model: q is that one's own likelihood then, and there is no
            SMC with it, since its weights do not vary from step to step towards σ.
        may_die: a run of SMC may lose all its particles, and its Ẑ is 0 then; else that is an error.
        at_step: called before each token of SMC; what it raises ends the work.

    Raises:
        ConfigError: the threshold is out of range.
    """

    model: TwistedLM
    potential: Potential | None
    num_steps: int
    proposal: Proposal = twist_induced
    resampler: Resampler = systematic
    ess_threshold: float | None = None
    reference: TwistedLM | None = None
    informed: Informed | None = None
    may_die: bool = False
    at_step: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        """Check the threshold."""
        if self.ess_threshold is not None and not 0.0 <= self.ess_threshold <= 1.0:
            raise ConfigError(
                f"ess_threshold must be between 0 (never resample) and 1 (always), not {self.ess_threshold}"
            )

    @property
    def base(self) -> "Sampler":
        """p₀ as a sampler of the same target."""
        return replace(self, model=(self.reference or self.model).base, proposal=base, reference=None, informed=None)

    @property
    def proposes_base(self) -> bool:
        """Whether q is p₀: without a twist, or where it does not propose."""
        return self.reference is None and (self.model.is_base or self.proposal is base)

    @property
    def ranges(self) -> Ranges:
        """What is known by definition of φ, and of the weights of independent draws."""
        return Ranges() if self.potential is None else Ranges.of(self.potential, self.proposes_base)

    @property
    def is_conditional(self) -> bool:
        """Whether the target differs by what a case is given."""
        return self.potential is not None and is_conditional(self.potential)

    # --- Independent draws ---

    def draw(
        self,
        rng: Rng,
        cases: Cases,
        num_samples: int,
        *,
        keep: Keep = NOTHING,
        paused: Tensor | None = None,
        batch: int = BATCH,
        done: Callable[[int], None] | None = None,
    ) -> Samples:
        """`num_samples` independent draws from q for each case, those of one case after the other.

        Args:
            rng: source of randomness.
            cases: R of them.
            num_samples: for each.
            keep: what is kept of every token.
            paused: steps [R, num_samples, T] at which each draws from p₀ instead of q; None for none.
            batch: sequences at a time, about; part of what a seed reproduces.
            done: is told how many sequences there are so far.
        """
        pieces, parts = [], list[Samples]()
        for at, rows, columns in in_parts(len(cases), num_samples, batch):
            resting, count = None if paused is None else paused[rows, columns], columns.stop - columns.start
            own = rng.fork("proposal", at)
            pieces.append(partial(self._unjudged, own, cases[rows], count, keep=keep, paused=resting))
        for part in self.side_by_side(pieces):
            parts.append(self._judged(part))
            if done is not None:
                done(sum(map(len, parts)))
        return Samples.concatenate(parts)

    def draw_at_once(
        self, rng: Rng, cases: Cases, num_samples: int, *, keep: Keep = NOTHING, paused: Tensor | None = None
    ) -> Samples:
        """The same in one batch; `paused` [R, num_samples, T]."""
        return self._judged(self._unjudged(rng, cases, num_samples, keep=keep, paused=paused))

    def _unjudged(self, rng: Rng, cases: Cases, num_samples: int, *, keep: Keep, paused: Tensor | None) -> Samples:
        """Draws before φ, and p₀ where the model is another one, have been asked about them.

        φ is taken apart from SMC, which refuses a batch of which every sequence has φ = 0: here each stands for itself.
        """
        free = replace(self, potential=None, ess_threshold=0.0, reference=None, may_die=True)
        return free.samples_of(free.smc(rng, cases, num_samples, keep=keep, paused=paused), cases)

    def _judged(self, drawn: Samples) -> Samples:
        """The same draws with what φ and p₀ say of them."""
        if self.potential is not None:
            log_phi = evaluate(self.potential, drawn.prompts, drawn.tokens, drawn.conditions)
            drawn = replace(drawn, log_phi=log_phi.to(drawn.log_p.device))
        if self.reference is None:
            return drawn
        return replace(drawn, log_p=self.reference.densities(replace(drawn, features=None), base).log_p)

    def densities(self, samples: Samples) -> Drawn:
        """log p₀, log ψ and log q [B, T] of given sequences."""
        if self.reference is None:
            return self.model.densities(samples, self.proposal)
        # Features that were kept are the base model's, and so is the recorded log p₀.
        own = self.model.densities(replace(samples, features=None), self.proposal)
        return replace(own, log_p=samples.log_p)

    def log_ratios(self, samples: Samples) -> Tensor:
        """r = log p₀φ − log q of given sequences [B], whoever drew them."""
        densities = self.densities(samples)
        return (densities.log_p - densities.log_q).sum(-1) + samples.log_phi

    # --- Sequential Monte Carlo ---

    def smc(
        self,
        rng: Rng,
        cases: Cases,
        num_particles: int,
        *,
        retained: Tensor | None = None,
        keep: Keep = NOTHING,
        paused: Tensor | None = None,
    ) -> SMCResult:
        """R independent SMC runs, one for each case, of N particles and T steps, in one batch.

        Args:
            rng: source of randomness.
            cases: R of them; equal prompts are read once.
            num_particles: N ≥ 1.
            retained: tokens [R, T] kept in slot 0 of each run (conditional SMC), or None.
            keep: what is kept of every token.
            paused: steps [R, N, T] at which a slot draws from p₀ instead of the proposal; None for none.

        Raises:
            ConfigError: N or T is out of range, `retained` has the wrong shape, or there is no SMC with this model.
            PromptError: a prompt is empty or too long.
            DeadParticlesError: every particle of a run has weight zero, and none `may_die`.
            ModelError: the model or the twist gives NaN.
            PotentialError: the potential raised or returned something that is not a log potential.
            ResamplingError: `retained` with a resampler that has no conditional form.
        """
        self._check(len(cases), num_particles, retained)
        self.model.check(prompts_of(cases), self.num_steps)
        model, conditions = self.model, conditions_of(cases)
        state = model.start(prompts_of(cases), num_particles, self.num_steps, conditions)
        device = state.lm.features.device
        retained = None if retained is None else retained.to(device)
        particles = smc.init(model, len(cases), num_particles, self.num_steps, device)
        infos: list[StepInfo] = []
        frames: list[Tensor] = []
        families: list[Siblings] = []
        log_phi, own = None, particles.log_psi
        # Where nothing is resampled, weights are looked at in the end alone, or not at all.
        below = smc.threshold(self.ess_threshold, num_particles, self.informed is not None)
        informed = self.informed if below > 0 else None
        for t in range(self.num_steps):
            if self.at_step is not None:
                self.at_step()
            particles, ancestors, resampled = smc.resample(rng, particles, self.resampler, below, retained is not None)
            if t > 0:
                state = smc.extend(model, state, particles, ancestors, resampled)
            if keep.features:
                frames.append(state.lm.features[state.rows].unflatten(0, ancestors.shape))
            resting = None if paused is None else paused[:, :, t].to(device)
            ended = particles.finished
            particles, drawn = smc.propose(
                rng, model, state, particles, self.proposal, retained, keep.siblings, resting
            )
            if drawn.siblings is not None:
                families.append(drawn.siblings)
            if t == self.num_steps - 1:
                log_phi = self._log_phi(cases, particles.tokens, conditions)
            elif informed is not None:
                # What the twist says of a finished particle is what it said at the end.
                own = torch.where(ended, select(own, ancestors), drawn.log_psi)
                drawn = replace(drawn, log_psi=self._log_psi(informed, cases, particles, drawn, own))
            particles, log_increment = smc.weigh(particles, drawn, log_phi)
            smc.refuse_dead(particles, self.num_steps, retained is not None, self.may_die)
            infos.append(StepInfo(ancestors, log_increment, ess(particles.log_w), resampled, particles.tokens[:, :, t]))
        assert log_phi is not None
        if frames or families:
            along = partial(smc.along, smc.lineages(infos))
            particles = replace(
                particles, features=along(frames) if frames else None, siblings=Siblings.combined(families, along)
            )
        return SMCResult(particles, tuple(infos), log_phi)

    def side_by_side(self, pieces: Sequence[Callable[[], R]]) -> Iterator[R]:
        """What each of the pieces gives, in order, each by a thread of its own where the model serves several.

        φ is asked by the caller's thread alone: a potential of one's own need not serve several.
        """
        return side_by_side(pieces, when=self.model.serves_threads)

    def samples_of(self, result: SMCResult, cases: Cases) -> Samples:
        """The R·N sequences of `smc` with the densities they were drawn with; resampling's weights stay in `result`."""
        particles = result.particles
        num_particles = particles.log_w.shape[1]
        tokens, conditions = particles.tokens.flatten(0, 1), conditions_of(cases)
        return Samples(
            prompts=_repeated(cases, num_particles),
            tokens=tokens,
            mask=self.model.mask(tokens),
            log_p=particles.log_p.flatten(0, 1),
            log_q=particles.log_q.flatten(0, 1),
            log_phi=result.log_phi.flatten(),
            features=None if particles.features is None else particles.features.flatten(0, 1),
            siblings=None if particles.siblings is None else particles.siblings.map(lambda x: x.flatten(0, 1)),
            conditions=None if conditions is None else conditions.repeat_interleave(num_particles, 0),
        )

    def choose(self, rng: Rng, cases: Cases, num_particles: int) -> "Chosen":
        """A sequence of each case, chosen by weight from a run of SMC of its own with so many particles.

        Together with the Ẑ of its run each is properly weighted: the mean of Ẑ f over such sequences has the
        expectation Σ p₀φ f, for any number of particles (Naesseth, Lindsten and Schön, 2015).
        """
        check_sizes(TOKEN_BYTES * self.num_steps, num_particles=num_particles)
        batches = list(in_batches(cases, num_particles))
        pieces = [partial(self.smc, rng.fork(at), some, num_particles) for at, some in batches]
        samples, moves, results = [], [], []
        for (at, some), result in zip(batches, self.side_by_side(pieces), strict=True):
            index = smc.choose(rng.fork(at, "choose"), result)
            index = index + num_particles * torch.arange(len(some), device=index.device)
            samples.append(self.samples_of(result, some).select(index))
            moves.append(smc.increments(result)[index])
            results.append(result)
        return Chosen(Samples.concatenate(samples), torch.cat(moves), tuple(results))

    def _log_phi(self, cases: Cases, tokens: Tensor, conditions: Tensor | None) -> Tensor:
        """log φ of tokens [R, N, T], float64 [R, N]."""
        num_runs, num_particles, _ = tokens.shape
        if self.potential is None:
            return torch.zeros((num_runs, num_particles), dtype=torch.float64, device=tokens.device)
        given = None if conditions is None else conditions.repeat_interleave(num_particles, 0)
        question = partial(evaluate, self.potential, _repeated(cases, num_particles), tokens.flatten(0, 1), given)
        values = asked(question)
        return values.to(tokens.device).view(num_runs, num_particles)

    def _log_psi(self, informed: Informed, cases: Cases, particles: Particles, drawn: Drawn, own: Tensor) -> Tensor:
        """log ψ̃_t of all particles [R, N], of which the last token has just been drawn; `own` is log ψ_t [R, N]."""
        t, shape = particles.length, own.shape
        numbers = informed.at(t)
        if numbers is None:
            log_psi = particles.log_psi + drawn.log_q - drawn.log_p
        else:
            a, c, b = numbers.to(drawn.log_psi.device)
            log_psi = a * (particles.log_q - particles.log_p)[..., :t].sum(-1) + c * softened(own)
            if b != 0:
                assert self.potential is not None
                conditions = conditions_of(cases)
                given = None if conditions is None else conditions.repeat_interleave(shape[1], 0)
                tokens = particles.tokens[..., :t].flatten(0, 1)
                question = partial(prefix_scores, self.potential, _repeated(cases, shape[1]), tokens, given)
                scores = asked(question)
                log_psi = log_psi + b * scores.to(log_psi.device).view(shape)
        return log_psi.masked_fill(own.isneginf(), -torch.inf)

    def _check(self, num_cases: int, num_particles: int, retained: Tensor | None) -> None:
        if self.reference is not None:
            raise ConfigError("there is no SMC with another model: its weights do not vary from step to step towards σ")
        check_sizes(TOKEN_BYTES * num_cases * self.num_steps, num_particles=num_particles)
        shape = (num_cases, self.num_steps)
        if retained is not None and tuple(retained.shape) != shape:
            raise ConfigError(f"retained must have shape [R, T] = {list(shape)}, not {list(retained.shape)}")


@dataclass(frozen=True)
class Chosen:
    """One sequence of each of n runs of SMC, drawn by weight.

    Attributes:
        samples: n of them.
        log_w_moves: how much each token moved log w [n, T].
        results: the runs, in batches.
    """

    samples: Samples
    log_w_moves: Tensor
    results: tuple[SMCResult, ...]

    @property
    def log_Z_hat(self) -> Tensor:
        """Each run's estimate of log Z [n]: the log weight of its sequence."""
        return torch.cat([result.log_Z_hat for result in self.results])


def _repeated(cases: Cases, num_particles: int) -> list[Tensor]:
    return [prompt for prompt in prompts_of(cases) for _ in range(num_particles)]


def check_room(model: TwistedLM, cases: Cases, names: Sequence[str], num_steps: int) -> None:
    """Refuse prompts that leave no room for `num_steps` new tokens.

    Raises:
        PromptError: which of them, how long, and what would fit.
    """
    for case, name in zip(cases, names, strict=True):
        try:
            model.check([case.prompt], num_steps)
        except PromptError as error:
            raise PromptError(str(error) if len(cases) == 1 else f"prompt {name!r}: {error}") from error


def in_batches(cases: Cases, num_particles: int, batch: int = BATCH) -> Iterator[tuple[int, Cases]]:
    """Cases for SMC with so many particles, as many at a time as make up a batch, each part with where it starts."""
    size = max(1, batch // num_particles)
    for at in range(0, len(cases), size):
        yield at, cases[at : at + size]


@dataclass(frozen=True)
class WorkerContext:
    """What a worker draws with (`twistlm.core.work`): a sampler and R cases for it; pieces of work say which."""

    sampler: Sampler
    cases: Cases

    @property
    def module(self) -> nn.Module:
        """Of the sampler's twist, whose parameters pieces of work bring."""
        twist = self.sampler.model.twist
        assert twist is not None
        return twist.module


def in_parts(num_cases: int, num_samples: int, batch: int) -> Iterator[tuple[int, slice, slice]]:
    """`num_samples` draws of each case in parts of about `batch`: the number of each, its cases, and which draws.

    Those of one case are as large as each other, so that workers who begin together end together.
    """
    if num_cases == 1 or num_samples > batch:
        size = even(num_samples, batch)
        for case in range(num_cases):
            for at in range(0, num_samples, size):
                yield case * num_samples + at, slice(case, case + 1), slice(at, min(at + size, num_samples))
        return
    size = max(1, batch // num_samples)
    for at in range(0, num_cases, size):
        yield at, slice(at, min(at + size, num_cases)), slice(0, num_samples)
