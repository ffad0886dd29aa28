"""One training loop for every loss, source and twist.

It must not make things worse. The twist starts at log ψ = 0 (q = p₀); a held-out criterion is watched, the best twist
by it is kept and training stops early; a shrinkage α (log ψ → α log ψ) is chosen by the same criterion, with α = 0 (the
base model) among the choices. Each update draws from a stream named by its number, so a checkpoint needs no generator
state and a resumed run equals an uninterrupted one bit for bit. Being told to end leaves a checkpoint of the last whole
update.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise, takewhile
from statistics import fmean
from typing import Any

from torch import Tensor

from twistlm.core.advice import coded
from twistlm.core.errors import ConfigError, ModelError, TrainingError
from twistlm.core.estimates import Estimate, difference, mean
from twistlm.core.processes import ALONE, Processes
from twistlm.core.progress import bar
from twistlm.core.rng import Rng
from twistlm.core.signals import STOPS, held
from twistlm.core.storage import as_json, as_type
from twistlm.sampling.cases import Cases
from twistlm.sampling.exact.collection import Collection
from twistlm.sampling.mixture import Pool, growths, snapshot, updates_until_growth
from twistlm.training import optimisers
from twistlm.training.averaging import Average
from twistlm.training.batches import drawn, is_constant, scale, served, steps
from twistlm.training.checkpoint import Checkpoint, Moment, Progress, Store
from twistlm.training.config import TrainingConfig
from twistlm.training.criteria import Criterion
from twistlm.training.informing import inform
from twistlm.training.losses import objective
from twistlm.training.parallel import among
from twistlm.training.scoring import Scoring, score
from twistlm.training.sources import Batch, Setting
from twistlm.training.value import fit_value
from twistlm.twists.base import HasValue
from twistlm.twists.informed import Informed
from twistlm.twists.updates import step

logger = logging.getLogger("twistlm")

# Seconds between checkpoints; resuming is exact from any of them.
CHECKPOINT_SECONDS = 15.0
# Updates in a row after which there is none. Of batches of fifty draws, one in a thousand of which hits, so many miss
# in a row with a chance of one in twenty-five.
MOST = 64
# Updates in a row with next to no effective sequences before the collapse is announced.
COLLAPSE_UPDATES = 10


class Trainer:
    """Trains the twist of `setting.sampler` in place and leaves it at its best.

    With `held_out` draws, what the proposal does not see of a twist is fitted at the end (`training.value`).

    Args:
        rng: source of randomness.
        setting: what sources draw from.
        config: how.
        criterion: the held-out judge.
        folder: where metrics and checkpoints go; None keeps them in memory only.
        held_out: base draws that took no part in training.
        certify: what to record after 0, 1, 2, 4, 8, … updates and after the last, given their number; None for nothing.
        processes: those that train together, each from the same arguments; only the first is given a folder.

    Raises:
        ConfigError: the model has no twist, or the target differs by a condition and a source knows one target only.
    """

    def __init__(
        self,
        rng: Rng,
        setting: Setting,
        config: TrainingConfig,
        criterion: Criterion,
        folder: Store | None = None,
        held_out: Collection | None = None,
        certify: Callable[[int], dict[str, Any]] | None = None,
        processes: Processes = ALONE,
    ) -> None:
        if setting.sampler.model.twist is None:
            raise ConfigError("there is nothing to train: build the model with a twist")
        self.rng, self.config, self.criterion, self.folder, self.processes = rng, config, criterion, folder, processes
        self.setting = replace(setting, sampler=among(setting.sampler, processes))
        self.twist, self.held_out, self.certify = setting.sampler.model.twist, held_out, certify
        self.module = self.twist.module
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.optimiser = optimisers.build(self.parameters, config)
        self.average = Average(self.parameters, config.averaging)
        self.objective = objective(config.loss)
        if setting.sampler.is_conditional:
            config.check_conditional()
        self.progress = Progress()
        self.best = snapshot(self.module)
        self.informed: Informed | None = None
        self.history: list[dict[str, Any]] = []
        self._saved_at = time.monotonic()
        # Where training was after the last whole update; None within one.
        self._whole: Moment | None = None

    def train(self) -> list[dict[str, Any]]:
        """Run to the end (or to the early stop), restore the best twist, choose its shrinkage; returns the history.

        Raises:
            TrainingError: the loss is not finite, or batch after batch misses the target.
        """
        self._resume()
        try:
            self._train()
        except STOPS:
            if self._whole is not None:
                self._checkpoint(self._whole)
            raise
        self.progress.stopped = True
        self._checkpoint(self._now())
        self._finish()
        return self.history

    def _train(self) -> None:
        """All updates, and what is looked at between them."""
        config, progress = self.config, self.progress
        self._whole = self._now()
        with bar(f"training ({config.loss})", config.num_updates) as report:
            while progress.done < config.num_updates and not progress.stopped:
                if progress.done % config.evaluate_every == 0:
                    self._evaluate()
                    if progress.stopped:
                        break
                if progress.done & (progress.done - 1) == 0:
                    self._certify()
                with held():
                    self._whole = None
                    record = self._update()
                    self._whole = self._now()
                report(
                    progress.done,
                    f"held-out {progress.best_value:.3f} at {progress.best_update}, ESS {record['ess']:.0f}",
                )
                if time.monotonic() - self._saved_at > CHECKPOINT_SECONDS:
                    self._checkpoint(self._whole)
            if not progress.stopped:
                self._evaluate()
                self._certify()

    def _update(self) -> dict[str, Any]:
        start, number = time.perf_counter(), self.progress.done
        self._grow_pool(number)
        try:
            batches = drawn(
                self.rng.fork("update", number), self.config, self.setting, self._cases, self.objective.roles
            )
        except ModelError as error:
            raise TrainingError(
                f"at update {number} {error}; if it was training that broke the twist, lower learning_rate (it is "
                f"{self.config.learning_rate:g})"
            ) from error
        if misses(batches):
            return self._passed_over(start)
        if self.objective.scale and not any(row["kind"] == "update" for row in self.history):
            self._start_at_scale(batches)
        optimisers.set_rate(self.optimiser, self.config.rate_at(number))
        # All of a batch's steps are one update: methods are compared by the sequences that they draw.
        epochs, losses = self.objective.inner_steps, []
        for part in steps(self.rng.fork("steps", number), batches, epochs, self.config.num_minibatches):
            scoring = score(
                self.setting.sampler.model, part, normaliser=self.objective.normaliser, processes=self.processes
            )
            value = self.objective(scoring.scored)
            norm = self._step(value)
            losses.append(value.item())
        self.progress.done += 1
        record = {
            "kind": "update",
            "update": number,
            "loss": fmean(losses),
            "ess": scoring.ess,
            "grad_norm": norm,
            # Of the proposal that the batch came from, as far as the batch tells.
            "kl_q_prior": float(next(iter(batches.values())).samples.log_q_over_p.mean()),
            "seconds": time.perf_counter() - start,
        }
        self._record(record)
        self._detect_collapse(scoring, record)
        return record

    def _passed_over(self, start: float) -> dict[str, Any]:
        record = {"kind": "miss", "update": self.progress.done, "ess": 0.0, "seconds": time.perf_counter() - start}
        self._record(record)
        self.progress.done += 1
        check_misses(self.history, self.config.num_updates)
        return record

    def _start_at_scale(self, batches: dict[str, Batch]) -> None:
        batch, model = next(iter(batches.values())), self.setting.sampler.model
        # A twist that began as another run's has a scale of its own.
        level = self.processes.of_first(lambda: scale(batch) if is_constant(model, batch) else None)
        if level is not None:
            self.twist.head.start_at(level)
            self._record({"kind": "start", "update": self.progress.done, "log_psi": level})

    def _step(self, value: Tensor) -> float:
        """One optimiser step; returns the gradient's norm before clipping."""
        if not bool(value.isfinite()):
            raise TrainingError(
                f"the loss is {value.item()} at update {self.progress.done}; lower learning_rate (it is "
                f"{self.config.learning_rate:g})"
            )
        norm = step(self.optimiser, value, self.parameters, self.config.max_grad_norm, self.processes)
        self.average.update()
        return norm

    def _grow_pool(self, number: int) -> None:
        """At some updates, draw with the best twist so far what the updates until the next growth would draw."""
        ahead = updates_until_growth(number, self.config.pool_first) if self.config.has_pool else None
        if ahead is None:
            return
        if number % self.config.evaluate_every != 0:
            self._evaluate()
        now = snapshot(self.module)
        self.module.load_state_dict(self.best)
        self._grow(number, number + ahead)
        self.module.load_state_dict(now)

    def _grow(self, number: int, until: int) -> None:
        """Draw with the twist as it is what the updates from `number` to `until` would draw."""
        setting = self.setting
        count = self.config.num_particles * (min(until, self.config.num_updates) - number)
        begin = Pool.begun if setting.pool is None else setting.pool.grown
        self.setting = replace(setting, pool=begin(self.rng, setting.sampler, setting.targets, count))

    @cached_property
    def _cases(self) -> Cases:
        """The prompts that every source can serve."""
        return served(self.config, self.setting)

    def _evaluate(self) -> None:
        """Look at the twist, or at its running mean if there is one."""
        with self.average.applied():
            self._look()

    def _look(self) -> None:
        start, number, progress = time.perf_counter(), self.progress.done, self.progress
        rng = self.rng.fork("evaluate", number)
        held_out = self._judged(rng)
        record: dict[str, Any] = {"kind": "evaluation", "update": number, "held_out": as_json(held_out)}
        cases = self.setting.targets
        if self.config.evaluation_samples and not self.setting.sampler.is_conditional and len(cases) == 1:
            own = self.setting.sampler.draw(rng, cases, self.config.evaluation_samples)
            record["f"] = as_json(mean(own.log_ratios))
            record["log_phi"] = as_json(mean(own.log_phi))
            record["kl_q_prior"] = as_json(mean(own.log_q_over_p))
        if held_out.value < progress.best_value:
            progress.best_value, progress.best_update = held_out.value, number
            self.best = snapshot(self.module)
        elif self.config.patience is not None and number < self.config.constant_updates:
            progress.stopped = number - progress.best_update >= self.config.patience
        record["seconds"] = time.perf_counter() - start
        self._record(record)
        first = next((row for row in self.history if row["kind"] == "evaluation"), record)["held_out"]
        rise = difference(held_out, as_type(Estimate, first, "progress"))
        if rise.low > 0.5:
            self._warn(
                "TW201",
                f"at update {number} the held-out divergence is {rise.value:.1f} nats above the start: the twist "
                f"overfits or feeds on itself; the best one (update {progress.best_update}) is kept. Lower "
                "learning_rate, raise weight_decay, or train on more draws (--num-draws)",
            )

    def _judged(self, rng: Rng) -> Estimate:
        """What the held-out criterion says: one number, in the last bit too, by which all processes decide."""
        judged = self.criterion(rng, self.setting.sampler)
        return self.processes.of_first(lambda: judged)

    def _certify(self) -> None:
        """On the paper's exponential schedule: what a certificate costs would otherwise dwarf the first updates."""
        if self.certify is not None:
            with self.average.applied():
                found = self.certify(self.progress.done)
            self._record({"kind": "certificate", "update": self.progress.done, **found})

    def _finish(self) -> None:
        """Restore the best twist, choose α for it, and fit its value if it has one."""
        self.module.load_state_dict(self.best)
        alpha = self._choose_shrinkage()
        training = self.setting.collection
        if (
            isinstance(self.twist.head, HasValue)
            # Other sources have not paid for the collection, and the loss alone fits the value.
            and self.config.draws_from("draws")
            and training is not None
            and training.are_base_draws
            and self.held_out is not None
            and alpha > 0
        ):
            draws, held_out = training.draws, self.held_out.draws
            fit = self.processes.of_first(lambda: fit_value(self.setting.sampler.model, draws, held_out))
            self.module.load_state_dict(self.processes.of_first(self.module.state_dict))
            self._record({"kind": "value", "update": self.progress.done, **fit})
        about: dict[str, Any] = {"update": self.progress.best_update, "alpha": alpha}
        if self.config.informed != "off":
            self.informed = self._inform()
            about["informed"] = self.informed.as_dict()
        if self.folder is not None:
            self.folder.save_twist(self.module.state_dict(), about)

    def _inform(self) -> Informed:
        """What weighs beside the finished twist, learned from a quarter of what training drew, if that is not much."""
        config, setting = self.config, self.setting
        count = config.num_particles * config.num_updates // 4
        there = setting.collection
        collected = there.draws if there is not None and there.are_base_draws else None
        informed, found = inform(
            self.rng.fork("inform"), setting.sampler, self._cases, count, config.informed,
            collected=collected, pool=setting.pool, targets=setting.targets,
        )  # fmt: skip
        self._record({"kind": "informed", "update": self.progress.done, **found})
        return self.processes.of_first(lambda: informed)

    def _choose_shrinkage(self) -> float:
        values = {}
        for alpha in sorted({1.0, float(self.twist.head.shrinkage), *self.config.shrinkages}):
            self.twist.head.shrinkage.fill_(alpha)
            values[alpha] = self._judged(self.rng.fork("shrinkage")).value
        chosen = min(values, key=lambda alpha: values[alpha])
        self.twist.head.shrinkage.fill_(chosen)
        self._record({"kind": "shrinkage", "update": self.progress.done, "alpha": chosen, "held_out": values})
        if chosen == 0.0:
            self._warn(
                "TW203",
                "no twist did better on held-out samples than none at all, so the base model is kept; train on more "
                "draws (--num-draws), with a lower learning_rate or a smaller twist",
            )
        return chosen

    def _detect_collapse(self, scoring: Scoring, record: dict[str, Any]) -> None:
        self.progress.collapsed = self.progress.collapsed + 1 if scoring.ess < 2.0 else 0
        if self.progress.collapsed == COLLAPSE_UPDATES:
            self._warn("TW202", collapse(self.config.num_particles, scoring.ess, record["kl_q_prior"]))

    def _warn(self, code: str, message: str) -> None:
        """Once for every code, in all parts of a run that was interrupted."""
        if code in self.progress.warnings:
            return
        self.progress.warnings.append(code)
        logger.warning(coded(code, message))
        self._record({"kind": "warning", "update": self.progress.done, "message": coded(code, message)})

    def _record(self, row: dict[str, Any]) -> None:
        self.history.append(row)
        if self.folder is not None:
            self.folder.append_metrics(row)

    def _now(self) -> Moment:
        return Moment(replace(self.progress, warnings=[*self.progress.warnings]), len(self.history), self.best)

    def _checkpoint(self, moment: Moment) -> None:
        """Save that moment; what updates change is still as it was then."""
        self._saved_at = time.monotonic()
        if self.folder is None:
            return
        kept: dict[int, dict[str, Tensor]] = self.optimiser.state_dict()["state"]
        generations = () if self.setting.pool is None else self.setting.pool.twists
        twist = self.module.state_dict()
        average = self.average.state
        Checkpoint(moment.progress, moment.rows, twist, moment.best, kept, generations, average).save(self.folder)

    def _resume(self) -> None:
        """Go on from the last checkpoint, if there is one; what was recorded after it will be done again."""
        folder, twist = self.folder, self.module.state_dict(keep_vars=True)
        kept = optimisers.kept(self.config.optimiser, self.parameters)
        given = twist, kept, self.config.num_updates, self.average.state
        saved = self.processes.of_first(lambda: None if folder is None else Checkpoint.load(folder, *given))
        if folder is not None:
            self.history = folder.truncate_metrics(0 if saved is None else saved.rows)
        if saved is None:
            return
        self.progress, self.best = saved.progress, saved.best
        for generation, (number, until) in zip(saved.pool, pairwise(growths(self.config.pool_first)), strict=False):
            self.module.load_state_dict(generation)
            self._grow(number, until)
        self.module.load_state_dict(saved.twist)
        self.average.state = saved.average
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": saved.optimiser})


def misses(batches: Mapping[str, Batch]) -> bool:
    """Whether the target's batch is there and has no sequence of φ > 0."""
    batch = batches.get("target")
    return batch is not None and not bool(batch.log_w.isfinite().any())


def check_misses(history: Sequence[Mapping[str, Any]], num_updates: int) -> None:
    """Refuse to go on after a miss, if all updates or too many in a row have been one.

    Args:
        history: rows of kind "update" and "miss", and others.
        num_updates: of the whole training.

    Raises:
        TrainingError: there is no hope.
    """
    kinds = [row["kind"] for row in history if row["kind"] in ("update", "miss")]
    in_a_row = sum(1 for _ in takewhile(lambda kind: kind == "miss", reversed(kinds)))
    if in_a_row >= min(MOST, num_updates):
        raise TrainingError(
            f"in {in_a_row} updates in a row no sequence had φ > 0: the target is too rare to be learned like this. "
            "Soften φ (eps=1e-4, a lower threshold, a lower beta), draw more (num_particles), or look for the event "
            "with `twistlm probability`, which climbs to it"
        )


def collapse(num_particles: int, effective: float, kl_q_prior: float) -> str:
    """What to say after so many updates with few effective sequences; the last one's number, and its proposal's KL."""
    return (
        f"for {COLLAPSE_UPDATES} updates fewer than 2 of {num_particles} sequences carried the target's weight (ESS "
        f"{effective:.1f}, KL to the prior {kl_q_prior:.1f}): the twist learns from single samples. Use more "
        "particles, --source draws or exact, a milder potential, or a lower learning_rate"
    )
