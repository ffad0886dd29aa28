"""One training loop for every loss, source and twist.

It must not make things worse. The twist starts at log ψ = 0 (q = p₀); a held-out criterion is watched, the best twist
by it is kept and training stops early; a shrinkage α (log ψ → α log ψ) is chosen by the same criterion, with α = 0 (the
base model) among the choices. Each update draws from a stream named by its number, so a checkpoint needs no generator
state and a resumed run equals an uninterrupted one bit for bit.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from twistlm import smc
from twistlm.calibration import fit_value
from twistlm.divergences import log_ratios, proposal_samples
from twistlm.errors import ConfigError, ModelError, RunError, TrainingError
from twistlm.estimates import Estimate, difference, mean
from twistlm.exact import Collection, joint_samples
from twistlm.logmath import log_mean_exp, normalise
from twistlm.losses import ROLES, finite, objective
from twistlm.pool import Pool, snapshot, updates_until_growth
from twistlm.progress import bar
from twistlm.resampling import invert
from twistlm.rng import Rng
from twistlm.runs import RunFolder
from twistlm.scoring import Scoring, score
from twistlm.sizes import RECORD_BYTES, TOKEN_BYTES, check_sizes
from twistlm.sources import Batch, Setting, get_source, serves, uses
from twistlm.storage import STRICT, as_type, check_tensors
from twistlm.twisted import TwistedLM
from twistlm.twists.low_rank import LowRankHead
from twistlm.types import ConditionalPotential, Samples

logger = logging.getLogger("twistlm")

# Seconds between checkpoints; resuming is exact from any of them.
CHECKPOINT_SECONDS = 15.0
# Consecutive updates with next to no effective positives before the collapse is announced.
COLLAPSE_UPDATES = 10


@dataclass(frozen=True)
class TrainingConfig:
    """How a twist is trained.

    Attributes:
        loss: a registered loss, or a weighted sum of them: "0.7*ctl + 0.3*rl".
        target_source: where samples weighted towards σ come from; "proposal+exact" takes half from each.
        intermediate_source: where those of a loss's other roles come from; the same name means the same batch.
        num_particles: sequences per batch.
        pool_batch: sequences per batch from the source "pool", which draws as many sequences as the others do, but in
            a few large rounds; see `twistlm.pool`.
        num_conditions: targets per batch where they differ (infilling); each gets its share of the particles.
        num_updates: at most so many batches.
        learning_rate: of AdamW.
        weight_decay: of AdamW, towards log ψ = 0.
        betas: of AdamW.
        max_grad_norm: gradients are clipped to this norm.
        evaluate_every: updates between looks at the held-out criterion.
        evaluation_samples: fresh proposal draws at each look, for KL(q‖σ) against updates; 0 to skip. Not where
            targets differ: certificates during training do that.
        patience: stop after so many updates without improvement; None never stops early.
        shrinkages: candidates for α at the end; 1 is always one.
    """

    __pydantic_config__ = STRICT

    loss: str = "ctl"
    target_source: str = "proposal"
    intermediate_source: str = "proposal"
    num_particles: int = 100
    pool_batch: int = 512
    num_conditions: int = 25
    num_updates: int = 500
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    max_grad_norm: float = 10.0
    evaluate_every: int = 20
    evaluation_samples: int = 0
    patience: int | None = 60
    shrinkages: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75)

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: a name is unknown or a number out of range.
        """
        wanted = objective(self.loss)
        for role, field_name in ROLES.items():
            name = getattr(self, field_name)
            if not serves(name, role) and role in wanted.roles:
                raise ConfigError(f"source {name!r} cannot serve as {field_name}; use 'base', 'proposal' or 'draws'")
        if wanted.on_policy and self.intermediate_source != "proposal":
            raise ConfigError(
                f"loss {self.loss!r} learns from the current proposal's own draws: set intermediate_source to "
                f"'proposal', not {self.intermediate_source!r}"
            )
        for name in ("num_particles", "pool_batch", "num_conditions", "evaluate_every"):
            check_sizes(TOKEN_BYTES, **{name: getattr(self, name)})
        check_sizes(RECORD_BYTES, num_updates=self.num_updates)
        check_sizes(TOKEN_BYTES, least=0, evaluation_samples=self.evaluation_samples)
        for name in ("learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be above 0 and finite, not {getattr(self, name)}")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"weight_decay must be 0 or more and finite, not {self.weight_decay}")
        # AdamW multiplies every parameter by 1 − learning_rate · weight_decay.
        if self.learning_rate * self.weight_decay >= 1:
            raise ConfigError(
                f"weight_decay = {self.weight_decay:g} times learning_rate = {self.learning_rate:g} must be below 1: "
                "each update would do more than set the twist to zero; lower one of them"
            )

    def draws_from(self, *names: str) -> bool:
        """Whether one of these sources gives a part of any role's samples."""
        return any(uses(getattr(self, field_name), name) for field_name in ROLES.values() for name in names)


Criterion = Callable[[Rng, TwistedLM], Estimate]
"""What training is judged by on data it never sees: smaller is better."""


def held_out_divergence(rng: Rng, held_out: Collection, setting: Setting, count: int = 128) -> Criterion:
    """G = E_σ[log p₀φ − log q] on base draws set aside: KL(σ‖q) up to the constant log Z.

    `count` of the draws are chosen once, by weight φ and systematically: the same expectation as over those that
    rejection accepted, with less noise, and few enough to score often. Its interval ignores that choice. Where all
    draws are exact (infilling), the first of them are taken.
    """
    draws = held_out.draws
    if draws.conditions is not None:
        return _mean_log_ratio(draws.select(torch.arange(min(count, len(draws)))), None, setting)
    weights = normalise(draws.log_phi).unsqueeze(0)
    points = (torch.arange(count) + rng.uniform((1, 1))) / count
    index, copies = invert(weights, points.to(weights.device)).unique(return_counts=True)
    return _mean_log_ratio(draws.select(index), copies, setting)


def _mean_log_ratio(chosen: Samples, copies: Tensor | None, setting: Setting) -> Criterion:
    def criterion(rng: Rng, model: TwistedLM) -> Estimate:
        found = model.densities(chosen, setting.proposal)
        ratios = (found.log_p - found.log_q).sum(-1) + chosen.log_phi
        return mean(ratios if copies is None else ratios.repeat_interleave(copies))

    return criterion


def negative_lower_bound(setting: Setting, num_particles: int = 16, num_runs: int = 16) -> Criterion:
    """−E[log Ẑ] by SMC, where no exact samples can be had."""

    def criterion(rng: Rng, model: TwistedLM) -> Estimate:
        result = smc.run(
            rng, model, setting.potential, prompts=[setting.prompt] * num_runs, num_particles=num_particles,
            num_steps=setting.num_steps, proposal=setting.proposal,
        )  # fmt: skip
        return mean(-result.log_Z_hat)

    return criterion


@dataclass
class Progress:
    """Where training is: everything but the weights that a checkpoint has to remember."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (pydantic's, and no field)

    done: Annotated[int, Ge(0)] = 0
    best_value: float = math.inf
    best_update: int = 0
    stopped: bool = False
    collapsed: int = 0
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says of itself: where training is, and how many lines of metrics belong to it."""

    progress: Progress
    rows: Annotated[int, Ge(0)]


class Trainer:
    """Trains `setting.model`'s twist in place and leaves it at its best.

    With `held_out` draws, what the proposal does not see of a low-rank twist is fitted at the end (`calibration`).

    Args:
        rng: source of randomness.
        setting: what sources draw from.
        config: how.
        criterion: the held-out judge.
        folder: where metrics and checkpoints go; None keeps them in memory only.
        held_out: base draws that took no part in training.
        certify: what to record after 0, 1, 2, 4, 8, … updates and after the last, given their number; None for nothing.
        pool: draws for the source "pool" that are there already; without them it makes its own as it goes.

    Raises:
        ConfigError: the model has no twist.
    """

    def __init__(
        self,
        rng: Rng,
        setting: Setting,
        config: TrainingConfig,
        criterion: Criterion,
        folder: RunFolder | None = None,
        held_out: Collection | None = None,
        certify: Callable[[int], dict[str, Any]] | None = None,
    ) -> None:
        if setting.model.twist is None:
            raise ConfigError("there is nothing to train: build the model with a twist")
        self.rng, self.setting, self.config, self.criterion, self.folder = rng, setting, config, criterion, folder
        self.twist, self.held_out, self.certify = setting.model.twist, held_out, certify
        self.module = self.twist.module
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        self.objective = objective(config.loss)
        self.pool = Pool() if config.draws_from("pool") else None
        if self.pool is not None and isinstance(setting.potential, ConditionalPotential):
            raise ConfigError("source 'pool' knows one target only; for infilling use 'exact', 'proposal' or 'base'")
        self.progress = Progress()
        self.best = snapshot(self.module)
        self.history: list[dict[str, Any]] = []
        self._saved_at = time.monotonic()

    def train(self) -> list[dict[str, Any]]:
        """Run to the end (or to the early stop), restore the best twist, choose its shrinkage; returns the history.

        Raises:
            TrainingError: the loss is not finite.
        """
        self._resume()
        config, progress = self.config, self.progress
        with bar(f"training ({config.loss})", config.num_updates) as report:
            while progress.done < config.num_updates and not progress.stopped:
                if progress.done % config.evaluate_every == 0:
                    self._evaluate()
                    if progress.stopped:
                        break
                if progress.done & (progress.done - 1) == 0:
                    self._certify()
                record = self._update()
                report(
                    progress.done,
                    f"held-out {progress.best_value:.3f} at {progress.best_update}, ESS {record['ess']:.0f}",
                )
                if time.monotonic() - self._saved_at > CHECKPOINT_SECONDS:
                    self._checkpoint()
            if not progress.stopped:
                self._evaluate()
                self._certify()
        progress.stopped = True
        self._checkpoint()
        self._finish()
        return self.history

    # --- One update ---

    def _update(self) -> dict[str, Any]:
        start, number = time.perf_counter(), self.progress.done
        self._grow_pool(number)
        try:
            batches = self._batches(self.rng.fork("update", number))
        except ModelError as error:
            raise TrainingError(
                f"at update {number} {error}; if it was training that broke the twist, lower learning_rate (it is "
                f"{self.config.learning_rate:g})"
            ) from error
        if number == 0 and self.objective.scale:
            self._start_at_scale(batches)
        # All of a batch's steps are one update: methods are compared by the sequences that they draw.
        for _ in range(self.objective.inner_steps):
            scoring = score(self.setting.model, batches, normaliser=self.objective.normaliser)
            value = self.objective(scoring.scored)
            norm = self._step(value)
        self.progress.done += 1
        record = {
            "kind": "update", "update": number, "loss": value.item(), "ess": scoring.ess, "grad_norm": norm,
            "kl_q_prior": _kl_to_prior(batches), "seconds": time.perf_counter() - start,
        }  # fmt: skip
        self._record(record)
        self._detect_collapse(scoring, record)
        return record

    def _start_at_scale(self, batches: dict[str, Batch]) -> None:
        """Start at a constant ψ near the mean of the optimal one, which is Z (of each target, where they differ).

        From ψ = 1 whatever was drawn would fall behind all that was not, and the proposal run after rare tokens until
        it has seen them all.
        """
        batch = next(iter(batches.values()))
        log_phi = finite(batch.samples.log_phi).view(batch.num_targets, -1)
        level = float(log_mean_exp(log_phi).mean())
        self.twist.head.start_at(level)
        self._record({"kind": "start", "update": 0, "log_psi": level})

    def _step(self, value: Tensor) -> float:
        """One optimiser step; returns the gradient's norm before clipping."""
        if not bool(value.isfinite()):
            raise TrainingError(
                f"the loss is {value.item()} at update {self.progress.done}; lower learning_rate (it is "
                f"{self.config.learning_rate:g})"
            )
        self.optimiser.zero_grad(set_to_none=True)
        value.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        self.optimiser.step()
        # The fused step leaves version counters alone, by which twists notice that what they derived is out of date.
        torch.autograd.graph.increment_version(self.parameters)
        return float(norm)

    def _grow_pool(self, number: int) -> None:
        """At some updates, draw with the best twist so far what the updates until the next growth would draw."""
        ahead = None if self.pool is None else updates_until_growth(number)
        if ahead is None:
            return
        if number % self.config.evaluate_every != 0:
            self._evaluate()
        now = snapshot(self.module)
        self.module.load_state_dict(self.best)
        self._grow(number, ahead)
        self.module.load_state_dict(now)

    def _grow(self, number: int, ahead: int) -> None:
        assert self.pool is not None
        count = self.config.num_particles * min(ahead, self.config.num_updates - number)
        self.pool.grow(
            self.rng, self.setting.model, self.setting.potential, prompt=self.setting.prompt,
            num_steps=self.setting.num_steps, count=count, proposal=self.setting.proposal,
        )  # fmt: skip

    def _batches(self, rng: Rng) -> dict[str, Batch]:
        drawn: dict[str, Batch] = {}
        setting = replace(self.setting, pool=self.pool)
        if isinstance(setting.potential, ConditionalPotential):
            # All roles of an update are given the same conditions.
            joint = joint_samples(
                rng.fork("conditions"), setting.model, setting.potential, setting.prompt, setting.num_steps,
                self.config.num_conditions, setting.model.features_are_reusable,
            )  # fmt: skip
            setting = replace(setting, joint=joint)
        for role in self.objective.roles:
            name = getattr(self.config, ROLES[role])
            if name not in drawn:
                count = self.config.pool_batch if uses(name, "pool") else self.config.num_particles
                drawn[name] = get_source(name)(rng.fork(name), setting, count)
        return {role: drawn[getattr(self.config, ROLES[role])] for role in self.objective.roles}

    # --- Looking ---

    def _evaluate(self) -> None:
        start, number, progress = time.perf_counter(), self.progress.done, self.progress
        rng = self.rng.fork("evaluate", number)
        found = self.criterion(rng, self.setting.model)
        record: dict[str, Any] = {"kind": "evaluation", "update": number, "held_out": found.as_dict()}
        if self.config.evaluation_samples and not isinstance(self.setting.potential, ConditionalPotential):
            drawn = proposal_samples(
                rng, self.setting.model, self.setting.potential, prompts=[self.setting.prompt],
                num_samples=self.config.evaluation_samples, num_steps=self.setting.num_steps,
                proposal=self.setting.proposal,
            )  # fmt: skip
            record["f"] = mean(log_ratios(drawn)).as_dict()
            record["log_phi"] = mean(drawn.log_phi).as_dict()
            record["kl_q_prior"] = mean((drawn.log_q - drawn.log_p).sum(-1)).as_dict()
        if found.value < progress.best_value:
            progress.best_value, progress.best_update = found.value, number
            self.best = snapshot(self.module)
        elif self.config.patience is not None and number - progress.best_update >= self.config.patience:
            progress.stopped = True
        record["seconds"] = time.perf_counter() - start
        self._record(record)
        first = next((row for row in self.history if row["kind"] == "evaluation"), record)["held_out"]
        rise = difference(found, Estimate.from_dict(first))
        if rise.low > 0.5:
            self._warn(
                f"at update {number} the held-out divergence is {rise.value:.1f} nats above the start: the twist "
                f"overfits or feeds on itself; the best one (update {progress.best_update}) is kept. Lower "
                "learning_rate, raise weight_decay, or train on more draws (--num-draws)"
            )

    def _certify(self) -> None:
        """On the paper's exponential schedule: what a certificate costs would otherwise dwarf the first updates."""
        if self.certify is not None:
            self._record({"kind": "certificate", "update": self.progress.done, **self.certify(self.progress.done)})

    def _finish(self) -> None:
        """Restore the best twist, choose α for it, and fit its value if it has one."""
        self.module.load_state_dict(self.best)
        alpha = self._choose_shrinkage()
        training = self.setting.collection
        if (
            isinstance(self.twist.head, LowRankHead)
            # Other sources have not paid for the collection, and the loss alone fits the value.
            and self.config.draws_from("draws")
            and training is not None
            and self.held_out is not None
            and alpha > 0
        ):
            fit = fit_value(self.setting.model, training.draws, self.held_out.draws)
            self._record({"kind": "value", "update": self.progress.done, **fit})
        if self.folder is not None:
            self.folder.save_twist(self.module.state_dict(), {"update": self.progress.best_update, "alpha": alpha})

    def _choose_shrinkage(self) -> float:
        values = {}
        for alpha in sorted({1.0, *self.config.shrinkages}):
            self.twist.head.shrinkage.fill_(alpha)
            values[alpha] = self.criterion(self.rng.fork("shrinkage"), self.setting.model).value
        chosen = min(values, key=lambda alpha: values[alpha])
        self.twist.head.shrinkage.fill_(chosen)
        self._record({"kind": "shrinkage", "update": self.progress.done, "alpha": chosen, "held_out": values})
        if chosen == 0.0:
            self._warn(
                "no twist did better on held-out samples than none at all, so the base model is kept; train on more "
                "draws (--num-draws), with a lower learning_rate or a smaller twist"
            )
        return chosen

    def _detect_collapse(self, scoring: Scoring, record: dict[str, Any]) -> None:
        self.progress.collapsed = self.progress.collapsed + 1 if scoring.ess < 2.0 else 0
        if self.progress.collapsed == COLLAPSE_UPDATES:
            self._warn(
                f"for {COLLAPSE_UPDATES} updates fewer than 2 of {self.config.num_particles} sequences carried the "
                f"target's weight (ESS {scoring.ess:.1f}, KL to the prior {record['kl_q_prior']:.1f}): the twist "
                "learns from single samples. Use more particles, --source draws or exact, a milder potential, or a "
                "lower learning_rate"
            )

    def _warn(self, message: str) -> None:
        if any(message[:40] == known[:40] for known in self.progress.warnings):
            return
        self.progress.warnings.append(message)
        logger.warning(message)
        self._record({"kind": "warning", "update": self.progress.done, "message": message})

    def _record(self, row: dict[str, Any]) -> None:
        self.history.append(row)
        if self.folder is not None:
            self.folder.append_metrics(row)

    # --- Checkpoints ---

    def _checkpoint(self) -> None:
        self._saved_at = time.monotonic()
        if self.folder is None:
            return
        tensors = {f"twist.{name}": tensor for name, tensor in self.module.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for index, values in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{name}": tensor for name, tensor in values.items()}
        for number, twist in enumerate(self.pool.twists if self.pool is not None else []):
            tensors |= {f"pool.{number}.{name}": tensor for name, tensor in twist.items()}
        self.folder.save_checkpoint(tensors, {"progress": self.progress.__dict__, "rows": len(self.history)})

    def _resume(self) -> None:
        if self.folder is None:
            return
        found = self.folder.load_checkpoint()
        if found is None:
            self.folder.truncate_metrics(0)
            return
        tensors, metadata = found
        where = str(self.folder.checkpoint)
        known = as_type(Checkpoint, metadata, where)
        expected = self.module.state_dict()
        for prefix in ("twist.", "best."):
            check_tensors(_below(prefix, tensors), expected, where)
        state = self._optimiser_state(tensors, where)
        rows = self.folder.metrics()
        if known.progress.done > self.config.num_updates or known.rows > len(rows):
            raise RunError(
                f"{where} knows of {known.progress.done} updates and {known.rows} lines of metrics, and there are "
                f"{self.config.num_updates} and {len(rows)}; start over with --overwrite"
            )
        self.progress = known.progress
        self._refill_pool(tensors, where)
        self.module.load_state_dict(_below("twist.", tensors))
        self.best = _below("best.", tensors)
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})
        self.history = self.folder.truncate_metrics(known.rows)

    def _optimiser_state(self, tensors: dict[str, Tensor], where: str) -> dict[int, dict[str, Tensor]]:
        """What AdamW kept of each parameter; nothing before the first update.

        Raises:
            RunError: it is not what AdamW keeps of these parameters.
        """
        found = _below("optimiser.", tensors)
        step = torch.zeros(())
        expected = {
            f"{index}.{name}": step if name == "step" else parameter
            for index, parameter in enumerate(self.parameters)
            for name in ("step", "exp_avg", "exp_avg_sq")
        }
        check_tensors(found, expected if found else {}, where)
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in found.items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        return state

    def _refill_pool(self, tensors: dict[str, Tensor], where: str) -> None:
        """Draw again, with the twists that drew it, what the pool held: cheaper than keeping it in every checkpoint."""
        update, number = 0, 0
        while twist := _below(f"pool.{number}.", tensors):
            check_tensors(twist, self.module.state_dict(), where)
            self.module.load_state_dict(twist)
            ahead = updates_until_growth(update)
            assert ahead is not None
            self._grow(update, ahead)
            update, number = update + ahead, number + 1


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _kl_to_prior(batches: dict[str, Batch]) -> float:
    """KL(q‖p₀) of the proposal that the batch came from, as far as the batch tells."""
    samples = next(iter(batches.values())).samples
    return float((samples.log_q - samples.log_p).sum(-1).mean())
