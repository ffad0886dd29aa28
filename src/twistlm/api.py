"""What a user writes: train a Target, get a Run, its samples, its certificate."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twistlm import smc
from twistlm.bounds import METHODS
from twistlm.certificate import Certificate, certify
from twistlm.conditional import certify_conditional
from twistlm.diagnostics import Diagnostics
from twistlm.divergences import proposal_samples
from twistlm.errors import ConfigError, NoneAcceptedError
from twistlm.estimates import Estimate, log_of_mean
from twistlm.evidence import Witness, of_draws
from twistlm.exact import Collection
from twistlm.folders import check_room
from twistlm.logmath import log_mean_exp, normalise
from twistlm.losses import ROLES, objective
from twistlm.pieces import pieces_of
from twistlm.proposals import get_proposal, twist_induced
from twistlm.registry import lookup
from twistlm.rng import Rng
from twistlm.runs import RunFolder
from twistlm.sizes import RUN_BYTES, TOKEN_BYTES, check_sizes
from twistlm.sources import Setting
from twistlm.storage import STRICT, as_type, check_tensors, share
from twistlm.subject import Subject
from twistlm.target import Target, TargetFields
from twistlm.training import Trainer, TrainingConfig, held_out_divergence, negative_lower_bound
from twistlm.types import ConditionalPotential, Samples, Twist

logger = logging.getLogger("twistlm")

# Texts kept with each certificate during training.
NUM_TEXTS = 4

FOLDS = ("training", "held_out", "evaluation")


@dataclass(frozen=True)
class EvaluationConfig:
    """How a run is certified.

    Attributes:
        num_particles: N of the sandwiches.
        num_samples: proposal samples for KL(q‖σ).
        budget: sequences spent on each bound at each N (at the largest, where targets differ by condition).
        during_training: certify after 0, 1, 2, 4, 8, … updates as well, for curves: by IWAE, a quarter of the budget.
    """

    __pydantic_config__ = STRICT

    num_particles: tuple[int, ...] = (4, 16, 64)
    num_samples: int = 512
    budget: int = 512
    during_training: bool = False


@dataclass(frozen=True)
class RunConfig:
    """Everything that makes a run what it is, beside its target.

    Attributes:
        twist: a registered twist.
        twist_options: its arguments.
        training: loss, sources, optimiser.
        num_draws: base draws to collect first: training data, of which those accepted are exact samples. 0 for none.
        num_exact: stop collecting once so many are accepted; None draws them all.
        folds: shares of the draws for training, for the held-out criterion and for evaluation.
        max_held_out: so many draws, chosen by φ, make up the held-out criterion.
        num_siblings: further draws of every token, kept for training.
        chunk: base draws at a time.
        evaluation: how it is certified.
        seed: of everything random.
    """

    __pydantic_config__ = STRICT

    twist: str = "low_rank"
    twist_options: Mapping[str, Any] = field(default_factory=dict)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    num_draws: int = 2048
    num_exact: int | None = None
    folds: tuple[float, float, float] = (0.5, 0.15, 0.35)
    max_held_out: int = 128
    num_siblings: int = 16
    chunk: int = 512
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: a number is out of range.
        """
        if self.num_draws < 0 or self.num_siblings < 0:
            raise ConfigError(
                f"num_draws and num_siblings must not be negative, not {self.num_draws} and {self.num_siblings}"
            )
        if len(self.folds) != len(FOLDS) or min(self.folds) <= 0 or sum(self.folds) > 1 + 1e-9:
            raise ConfigError(f"folds must be {len(FOLDS)} positive shares of at most 1 in all, not {self.folds}")
        if 0 < self.num_draws < 8:
            raise ConfigError(f"num_draws must be 0 or at least 8, so that every fold has some, not {self.num_draws}")

    @property
    def trains_on_draws(self) -> bool:
        """Whether the collected draws are training data too, so that their features are worth keeping."""
        return self.training.draws_from("draws", "exact")

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Described:
    """What a run folder says of its run.

    Attributes:
        format: of the folder.
        target: None if the potential has no JSON form.
        run: the settings.
        versions: of everything that results depend on.
    """

    __pydantic_config__ = STRICT

    format: int
    target: TargetFields | None
    run: RunConfig
    versions: Mapping[str, str]

    @staticmethod
    def of(folder: RunFolder) -> "Described":
        """What a folder says.

        Raises:
            RunError: it says something else.
        """
        return as_type(Described, folder.config, str(folder.path / "config.json"))


@dataclass(frozen=True)
class TextSamples:
    """Samples as a user wants them.

    Attributes:
        texts: continuations, without the prompt.
        weights: normalised weights [n].
        log_phi: log φ [n].
        log_p: log p₀ of each continuation [n].
        log_Z_hat: the run's estimate of log Z (mean over runs if there were several).
        pieces: what each token added to the text, [n][T].
        log_psi_moves: log ψ_t − log ψ_{t−1} at each token [n, T], with φ for ψ_T.
        log_w_moves: how much each token moved log w [n, T].
        diagnostics: what SMC recorded; None where there was none.
    """

    texts: list[str]
    weights: Tensor
    log_phi: Tensor
    log_p: Tensor
    log_Z_hat: float
    pieces: list[list[str]]
    log_psi_moves: Tensor
    log_w_moves: Tensor
    diagnostics: Diagnostics | None = None

    def rows(self) -> list[dict[str, Any]]:
        """One JSON object per sample."""
        columns = zip(
            self.texts, self.weights.tolist(), self.log_phi.tolist(), self.log_p.tolist(), self.pieces,
            self.log_psi_moves.tolist(), self.log_w_moves.tolist(), strict=True,
        )  # fmt: skip
        names = ("text", "weight", "log_phi", "log_p", "pieces", "log_psi_moves", "log_w_moves")
        return [dict(zip(names, row, strict=True)) for row in columns]


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
        described = Described.of(folder)
        config = described.run
        if target is None:
            if described.target is None:
                raise ConfigError(f"the potential of {path} has no JSON form; pass target=… to Run.load")
            target = Target.from_spec(dataclasses.asdict(described.target), tuple(trust_functions))
        tensors, _ = folder.load_twist()
        twist = _build(target, config, Rng(config.seed, ("twist",)), blank=True)
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


def train(
    target: Target,
    *,
    method: str | None = None,
    twist: str | None = None,
    seed: int | None = None,
    num_particles: int | None = None,
    num_updates: int | None = None,
    out: str | Path | None = None,
    exists: str = "refuse",
    draws: str | Path | None = None,
    config: RunConfig | None = None,
    **training: Any,
) -> Run:
    """Learn a twist for `target`.

    First base draws are collected (if φ has an upper bound), which serve as training data, as exact samples for the
    held-out criterion and for evaluation; then the twist is trained, keeping the best by the held-out criterion.

    Args:
        target: what to sample from.
        method: the loss: "ctl", "dpg", … (`twistlm list`).
        twist: the kind of twist: "low_rank", "mlp", "tied", …
        seed: of everything random; the same seed gives the same run bit for bit on the same machine.
        num_particles: sequences per update.
        num_updates: at most so many updates.
        out: run folder; None keeps everything in memory.
        exists: what to do if `out` exists: "refuse", "resume" or "overwrite", which replaces it when all is done.
        draws: a file of `twistlm collect` for the same target, used instead of new draws; `out` shares it.
        config: all settings at once; the arguments above override it.
        **training: further fields of `TrainingConfig`.

    Raises:
        ConfigError: a setting is unknown or out of range.
        RunError: `out` exists and must not, cannot be resumed, or is being written by somebody else.
        StorageError: the system refuses, or files of the run were deleted meanwhile.
        TrainingError: the loss became infinite.
    """
    config = _merged(config, target, method, twist, seed, num_particles, num_updates, training)
    if out is not None:
        RunFolder.check(Path(out), exists)
    # What can be refused is refused before a folder is made or replaced.
    target.check()
    built = _build(target, config, Rng(config.seed).fork("twist"))
    given = None if draws is None else target.draws(Path(draws))
    if out is None:
        return _trained(target, config, built, None, given)
    check_room(Path(out), _room(config, target, built, given))
    with RunFolder.writing(Path(out), _described(target, config), exists) as folder:
        if draws is not None and not folder.draws.exists():
            share(Path(draws), folder.draws)
        return _trained(target, config, built, folder, given)


def _trained(
    target: Target, config: RunConfig, twist: Twist, folder: RunFolder | None, given: Collection | None
) -> Run:
    """Collect what is not given, and train."""
    rng = Rng(config.seed)
    collection = _collect(target, config, rng, folder) if given is None else given
    run = Run(target, config, twist, folder, collection)
    setting = Setting(
        run.model, target.bound_potential, target.prompt_tokens, target.num_tokens, collection=run.fold("training"),
        num_siblings=config.num_siblings,
    )  # fmt: skip
    held_out = run.fold("held_out")
    if held_out is not None:
        criterion = held_out_divergence(rng.fork("held-out"), held_out, setting, config.max_held_out)
    else:
        logger.warning("no base draws to judge by: the lower bound on log Z decides which twist is best")
        # Runs of 16 particles each, within what a certificate may spend.
        criterion = negative_lower_bound(setting, num_runs=max(2, min(16, config.evaluation.budget // 16)))
    certify = partial(_certified, run) if config.evaluation.during_training else None
    trainer = Trainer(rng.fork("train"), setting, config.training, criterion, folder, held_out, certify)
    run.history = trainer.train()
    return run


def _room(config: RunConfig, target: Target, twist: Twist, given: Collection | None) -> float:
    """Bytes that a run folder takes, roughly: its draws, and the twist with what AdamW keeps of it."""
    per_token = 4 + 1 + 8 + (4 * (target.lm.feature_size + config.num_siblings) if config.trains_on_draws else 0)
    # Where collecting may stop early, nobody knows.
    count = 0 if given is not None or config.num_exact is not None else config.num_draws
    parameters = sum(p.numel() * p.element_size() for p in twist.module.parameters() if p.requires_grad)
    return count * target.num_tokens * per_token + 6 * parameters


def _certified(run: Run, update: int) -> dict[str, Any]:
    """What is recorded of a certificate during training, with a few texts."""
    # Of its own for every seed: the scatter of certificates over seeds is to include that of evaluation.
    seed = (run.config.seed << 32) + update
    found = run.evaluate(seed=seed, budget=run.config.evaluation.budget // 4, methods=("iwae",)).as_dict()
    evaluation, condition = run.fold("evaluation"), None
    if evaluation is not None and evaluation.draws.conditions is not None:
        condition = evaluation.draws.conditions[0]
    return {**found, "texts": run.sample(NUM_TEXTS, condition=condition, seed=update).texts}


def _build(target: Target, config: RunConfig, rng: Rng, *, blank: bool = False) -> Twist:
    return target.build_twist(
        rng, config.twist, config.twist_options, blank=blank,
        is_probability=objective(config.training.loss).probability,
    )  # fmt: skip


def _merged(
    config: RunConfig | None, target: Target, method: str | None, twist: str | None, seed: int | None,
    num_particles: int | None, num_updates: int | None, training: dict[str, Any],
) -> RunConfig:  # fmt: skip
    """The config with the arguments of `train` laid over it."""
    bounded = target.potential.log_upper_bound is not None
    if config is None:
        config = RunConfig(num_draws=RunConfig.num_draws if bounded else 0)
        source = "draws" if bounded else "proposal"
        training = dict.fromkeys(ROLES.values(), source) | training
    given = {"loss": method, "num_particles": num_particles, "num_updates": num_updates}
    training = {k: v for k, v in given.items() if v is not None} | training
    unknown = training.keys() - {f.name for f in dataclasses.fields(TrainingConfig)}
    if unknown:
        known = ", ".join(f.name for f in dataclasses.fields(TrainingConfig))
        raise ConfigError(f"unknown setting {', '.join(sorted(unknown))}; training takes {known}")
    changes: dict[str, Any] = {"training": dataclasses.replace(config.training, **training)}
    if twist is not None:
        changes |= {"twist": twist, "twist_options": config.twist_options if twist == config.twist else {}}
    if seed is not None:
        changes["seed"] = seed
    lookup("twist", changes.get("twist", config.twist))
    return dataclasses.replace(config, **changes)


def _described(target: Target, config: RunConfig) -> dict[str, Any]:
    described: dict[str, Any] | None = None
    try:
        described = target.spec()
    except ConfigError as error:
        logger.warning("%s; Run.load will need target=…", error)
    return {"target": described, "run": config.as_dict()}


def collect(target: Target, config: RunConfig, rng: Rng, path: Path | None, *, training: bool) -> Collection:
    """The base draws that `config` asks for; with what training needs of them if they are `training` data too.

    Raises:
        UpperBoundError: φ has no known upper bound.
        NoneAcceptedError: nothing was accepted within the budget.
    """
    return target.collect(
        rng, num_samples=config.num_exact, max_draws=config.num_draws, path=path,
        chunk=min(config.chunk, config.num_draws), keep_features=training,
        num_siblings=config.num_siblings if training else 0,
    )  # fmt: skip


def _collect(target: Target, config: RunConfig, rng: Rng, folder: RunFolder | None) -> Collection | None:
    if config.num_draws == 0:
        return None
    try:
        return collect(
            target, config, rng, folder.draws if folder is not None else None, training=config.trains_on_draws
        )
    except NoneAcceptedError as error:
        logger.warning("%s", error)
        return None
