"""A run: a target with a trained twist, its samples, its certificate."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twistlm.certificates.bounds import METHODS
from twistlm.certificates.certificate import Certificate
from twistlm.certificates.certify import certify
from twistlm.certificates.log_Z import Witness, of_draws
from twistlm.certificates.paired import certify_conditional
from twistlm.certificates.subject import Subject
from twistlm.core.errors import ConfigError
from twistlm.core.estimates import Estimate, log_of_mean
from twistlm.core.logmath import log_mean_exp, normalise
from twistlm.core.registry import lookup
from twistlm.core.rng import Rng
from twistlm.core.sizes import RUN_BYTES, TOKEN_BYTES, check_sizes
from twistlm.core.storage import check_tensors
from twistlm.models.token_texts import pieces_of
from twistlm.potentials.protocol import ConditionalPotential
from twistlm.runs.config import FOLDS, RunConfig
from twistlm.runs.folder import RunFolder
from twistlm.runs.texts import TextSamples
from twistlm.sampling import smc
from twistlm.sampling.diagnostics import Diagnostics
from twistlm.sampling.exact.collection import Collection
from twistlm.sampling.proposals import get_proposal, twist_induced
from twistlm.sampling.sampler import proposal_samples
from twistlm.sampling.samples import Samples
from twistlm.sampling.target import Target
from twistlm.training.losses import objective
from twistlm.twists.base import Twist


class Run:
    """A target with a trained twist."""

    def __init__(
        self, target: Target, config: RunConfig, twist: Twist, folder: RunFolder | None, collection: Collection | None,
        history: Sequence[Mapping[str, Any]] = (),
    ) -> None:  # fmt: skip
        self.target, self.config, self.folder = target, config, folder
        self.history: list[dict[str, Any]] = [dict(row) for row in history]
        self.model = target.twisted(twist)
        self.base = target.twisted()
        self.collection = collection

    @staticmethod
    def load(path: str | Path, target: Target | None = None, *, trust_functions: Sequence[str] = ()) -> "Run":
        """Open a finished run. That runs no code of the folder's choice and downloads nothing.

        Args:
            path: its folder.
            target: needed only if the potential could not be written to the folder (a lambda, a loaded model).
            trust_functions: functions, as "module:name", that the folder's potential may import and run.

        Raises:
            RunError: no run is there, it has not finished, it is corrupt or of another version.
            ConfigError: its potential is a function that is not trusted.
            ModelError: its model or classifier is not on this machine.
        """
        folder = RunFolder.open(Path(path))
        described = folder.load_description()
        config = described.run
        if target is None:
            if described.target is None:
                raise ConfigError(f"the potential of {path} has no JSON form; pass target=… to Run.load")
            target = Target.from_spec(dataclasses.asdict(described.target), tuple(trust_functions))
        tensors, _ = folder.load_twist()
        twist = build_twist(target, config, Rng(config.seed, ("twist",)), blank=True)
        check_tensors(tensors, twist.module.state_dict(), str(folder.twist))
        twist.module.load_state_dict(tensors)
        collection = target.draws(folder.draws) if folder.draws.exists() else None
        return Run(target, config, twist, folder, collection, folder.metrics())

    def fold(self, name: str) -> Collection | None:
        """The part of the base draws set aside as "training", "held_out" or "evaluation"; None if there are none."""
        return self._folds.get(name)

    @cached_property
    def _folds(self) -> dict[str, Collection]:
        """Split once: selecting copies the draws with their features, and every evaluation asks for all three."""
        return (
            {} if self.collection is None else dict(zip(FOLDS, self.collection.split(self.config.folds), strict=True))
        )

    def subject(
        self,
        *,
        before: bool = False,
        proposal: str = "twist_induced",
        resampler: str = "systematic",
        ess_threshold: float = 0.5,
        proposal_run: "Run | None" = None,
    ) -> Subject:
        """The run's model with a way to sample from it: what `sample` and `evaluate` take as options.

        Args:
            before: the base model instead of the trained twist.
            proposal: a registered proposal; "tempered:0.5" for one with a parameter.
            resampler: a registered resampler.
            ess_threshold: resample when ESS ≤ this fraction of N; 0 never, 1 at every step.
            proposal_run: another run on the same base model, whose twist proposes while this one's weighs.

        Raises:
            ConfigError: a name is unknown, a number out of range, or the other run has another base model.
        """
        if not 0.0 <= ess_threshold <= 1.0:
            raise ConfigError(f"ess_threshold must be between 0 (never resample) and 1 (always), not {ess_threshold}")
        model = self.base if before else self.model
        if proposal_run is not None and not before:
            if proposal_run.target.model_name != self.target.model_name:
                raise ConfigError(
                    f"proposal_run is on {proposal_run.target.model_name!r} and this run on "
                    f"{self.target.model_name!r}; choose one on the same base model"
                )
            model = self.target.twisted(self.model.twist, proposal_run.model.twist)
        return Subject(
            model, self.target.bound_potential, self.target.prompt_tokens,
            self.target.num_tokens, get_proposal(proposal), lookup("resampler", resampler).value, ess_threshold,
        )  # fmt: skip

    def sample(
        self,
        num_samples: int,
        *,
        num_particles: int | None = None,
        condition: str | Tensor | None = None,
        seed: int = 0,
        **options: Any,
    ) -> TextSamples:
        """Samples of the target by SMC.

        Args:
            num_samples: how many.
            num_particles: None runs SMC once with `num_samples` particles, which come with weights and share ancestors.
                A number runs SMC independently for every sample and draws one of that many particles by weight.
            condition: what the target is given, if targets differ: text, or its tokens [c].
            seed: of the samples.
            **options: of `subject`: proposal, resampler, ess_threshold, proposal_run.
        """
        check_sizes(TOKEN_BYTES * self.target.num_tokens, num_samples=num_samples)
        if num_particles is not None:
            check_sizes(TOKEN_BYTES * self.target.num_tokens, num_particles=num_particles)
        subject, rng = self.subject(**options), Rng(seed, ("sample",))
        count = num_samples if num_particles is None else num_particles
        runs = 1 if num_particles is None else num_samples
        group = runs if num_particles is None else max(1, 512 // num_particles)
        given = self.target.condition(condition)
        samples, weights, moves, results = [], [], [], []
        for at in range(0, runs, group):
            prompts = [self.target.prompt_tokens] * min(group, runs - at)
            conditions = None if given is None else given.expand(len(prompts), -1)
            result = smc.run(
                rng.fork(at), subject.model, subject.potential, prompts=prompts, num_particles=count,
                num_steps=subject.num_steps, proposal=subject.proposal, resampler=subject.resampler,
                ess_threshold=subject.ess_threshold, conditions=conditions,
            )  # fmt: skip
            found, moved = smc.to_samples(result, prompts, self.model, conditions), smc.increments(result)
            if num_particles is not None:
                index = smc.choose(rng.fork(at, "choose"), result) + count * torch.arange(len(prompts))
                found, moved = found.select(index), moved[index]
            samples.append(found)
            weights.append(result.weights[0] if num_particles is None else torch.full((len(found),), 1 / num_samples))
            moves.append(moved)
            results.append(result)
        estimate = float(torch.cat([result.log_Z_hat for result in results]).mean())
        return self._as_texts(
            Samples.concatenate(samples), torch.cat(weights).double(), estimate, torch.cat(moves),
            Diagnostics.of(results, self.target.lm),
        )  # fmt: skip

    def base_samples(self, num_samples: int, *, condition: str | Tensor | None = None, seed: int = 0) -> TextSamples:
        """Independent draws from the base model, weighted by φ: what samples of the target are compared with.

        Args:
            num_samples: how many.
            condition: what the target is given, if targets differ.
            seed: of the samples.
        """
        check_sizes(TOKEN_BYTES * self.target.num_tokens, num_samples=num_samples)
        given = self.target.condition(condition)
        drawn = proposal_samples(
            Rng(seed, ("base_samples",)), self.base, self.target.bound_potential,
            prompts=[self.target.prompt_tokens] * (1 if given is None else num_samples),
            num_samples=num_samples if given is None else 1, num_steps=self.target.num_tokens,
            conditions=None if given is None else given.expand(num_samples, -1),
        )  # fmt: skip
        # What this run's twist makes of them: nothing of it took part in drawing.
        log_psi = self.model.densities(drawn, twist_induced).log_psi
        log_psi = torch.cat([self.model.carried(log_psi, drawn.mask)[:, :-1], drawn.log_phi.unsqueeze(-1)], 1)
        moves = log_psi.diff(dim=1, prepend=log_psi.new_zeros(num_samples, 1))
        return self._as_texts(drawn, normalise(drawn.log_phi), float(log_mean_exp(drawn.log_phi)), moves)

    def _as_texts(
        self, samples: Samples, weights: Tensor, log_Z_hat: float, log_w_moves: Tensor,
        diagnostics: Diagnostics | None = None,
    ) -> TextSamples:  # fmt: skip
        # By the definition of the increments, log w_t = log p₀ + log ψ_t − log ψ_{t−1} − log q_t.
        log_psi_moves = log_w_moves - samples.log_p + samples.log_q
        return TextSamples(
            self.target.texts(samples), weights, samples.log_phi, samples.log_p.sum(-1), log_Z_hat,
            pieces_of(self.target.lm, samples.tokens), log_psi_moves, log_w_moves, diagnostics,
        )  # fmt: skip

    def evaluate(
        self,
        num_particles: int | Sequence[int] | None = None,
        *,
        num_samples: int | None = None,
        budget: int | None = None,
        seed: int = 1,
        before: bool = False,
        methods: Sequence[str] = METHODS,
        **options: Any,
    ) -> Certificate:
        """Certify the run's proposal and SMC: sandwiches of log Z, KL both ways.

        Args:
            num_particles: N of the sandwiches; None takes the run's own settings here and below.
            num_samples: proposal samples for KL(q‖σ).
            budget: sequences spent on each bound at each N.
            seed: of the evaluation.
            before: certify the base model instead, with the same exact samples.
            methods: of the sandwiches, "iwae" and "smc".
            **options: of `subject`: proposal, resampler, ess_threshold, proposal_run.
        """
        evaluation, settings = self.fold("evaluation"), self.config.evaluation
        if num_particles is None:
            num_particles = settings.num_particles
        counts = [num_particles] if isinstance(num_particles, int) else list(num_particles)
        subject = self.subject(before=before, **options)
        rng = Rng(seed, ("evaluate", "before" if before else "after"))
        num_samples = settings.num_samples if num_samples is None else num_samples
        budget = settings.budget if budget is None else budget
        check_sizes(TOKEN_BYTES * self.target.num_tokens, num_samples=num_samples)
        check_sizes(RUN_BYTES, budget=budget)
        if isinstance(subject.potential, ConditionalPotential):
            if evaluation is None:
                raise ConfigError("a target with conditions is evaluated on collected draws: set num_draws above 0")
            return certify_conditional(
                rng, subject, evaluation.exact, num_particles=counts, num_samples=num_samples, budget=budget,
                methods=methods,
            )  # fmt: skip
        spare = self.fold("training") if before else None
        return certify(
            rng, subject, evaluation.exact if evaluation is not None else None, num_particles=counts,
            num_samples=num_samples, budget=budget, drawn=spare.draws if spare is not None else None,
            witnesses=self.witnesses, methods=methods,
        )  # fmt: skip

    @property
    def log_Z(self) -> Estimate | None:
        """log Z from the base draws outside the evaluation fold; None if there are none, or if targets differ."""
        bound = self.target.potential.log_upper_bound
        return None if self._log_phi is None else log_of_mean(self._log_phi, high=bound)

    @property
    def witnesses(self) -> tuple[Witness, ...]:
        """What those draws say of log Z, for a certificate."""
        bound = self.target.potential.log_upper_bound
        return () if self._log_phi is None else (of_draws(self._log_phi, bound),)

    @property
    def _log_phi(self) -> Tensor | None:
        """log φ of the base draws outside the evaluation fold, so independent of its exact samples.

        φ alone decides log Z, so training on those draws does no harm.
        """
        if isinstance(self.target.potential, ConditionalPotential):
            return None
        parts = [self.fold("training"), self.fold("held_out")]
        log_phi = [part.draws.log_phi for part in parts if part is not None]
        return torch.cat(log_phi) if log_phi else None


def build_twist(target: Target, config: RunConfig, rng: Rng, *, blank: bool = False) -> Twist:
    """The twist that the settings ask for, at the start of its training.

    Args:
        target: what it is for.
        config: its kind and options, and the loss, which may want a probability.
        rng: of its parameters.
        blank: without initial values, where others take their place.

    Raises:
        ConfigError: there is no such twist, or its options are none of its own.
    """
    return target.build_twist(
        rng, config.twist, config.twist_options, blank=blank,
        is_probability=objective(config.training.loss).probability,
    )  # fmt: skip
