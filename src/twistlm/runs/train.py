"""Train a Target, get a Run."""

import dataclasses
import logging
from functools import partial
from pathlib import Path
from typing import Any

from twistlm.core.errors import ConfigError, NoneAcceptedError
from twistlm.core.folders import check_room
from twistlm.core.registry import lookup
from twistlm.core.rng import Rng
from twistlm.runs.config import RunConfig
from twistlm.runs.folder import Asked, RunFolder
from twistlm.runs.run import Run, _build
from twistlm.sampling.exact.collection import Collection
from twistlm.sampling.target import Target
from twistlm.training.config import TrainingConfig
from twistlm.training.criteria import held_out_divergence, negative_lower_bound
from twistlm.training.losses import ROLES
from twistlm.training.sources import Setting
from twistlm.training.trainer import Trainer
from twistlm.twists.base import Twist

logger = logging.getLogger("twistlm")

# Texts kept with each certificate during training.
NUM_TEXTS = 4


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
    with RunFolder.writing(Path(out), _asked(target, config), exists) as folder:
        if draws is not None:
            folder.share_draws(Path(draws))
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


def _asked(target: Target, config: RunConfig) -> Asked:
    described: dict[str, Any] | None = None
    try:
        described = target.spec()
    except ConfigError as error:
        logger.warning("%s; Run.load will need target=…", error)
    return Asked(described, config)


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
