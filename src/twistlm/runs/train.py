"""Train a Target, get a Run."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from twistlm.core.advice import coded
from twistlm.core.errors import ConfigError, NoneAcceptedError
from twistlm.core.folders import check_room
from twistlm.core.identity import digest
from twistlm.core.processes import Processes
from twistlm.core.registry import lookup
from twistlm.core.remote import opened, url_of
from twistlm.core.rng import Rng
from twistlm.core.storage import as_json
from twistlm.potentials.conditions import is_conditional
from twistlm.runs.automatic import AUTO, automatic, on_policy, suited
from twistlm.runs.certification import Certification
from twistlm.runs.config import EvaluationConfig, RunConfig
from twistlm.runs.folder import AskedRun, RunFolder
from twistlm.runs.run import Run, build_twist
from twistlm.runs.seen import handed_on, seen_by
from twistlm.sampling.exact.collect import bound_of
from twistlm.sampling.exact.collection import Collection
from twistlm.sampling.exact.origins import Origins
from twistlm.sampling.exact.provenance import identity
from twistlm.sampling.prompts import Entry
from twistlm.sampling.smc import Keep
from twistlm.sampling.target import Target
from twistlm.training import optimisers
from twistlm.training.criteria import held_out_divergence, negative_lower_bound
from twistlm.training.sources import Setting
from twistlm.training.trainer import Trainer
from twistlm.twists.base import Twist

logger = logging.getLogger("twistlm")

# Texts kept with each certificate during training.
NUM_TEXTS = 4
# Base draws for each prompt of a set: at least, and where nothing else is said.
FEWEST_DRAWS, DRAWS_OF_A_PROMPT = 8, 64
# Of draws that no update learns from, with twice as many of them: a few dozen effective ones choose the best twist, or
# by chance none at all, and what weighs beside it is learned from as many as before.
JUDGING = (0.3, 0.3, 0.4)


def train(
    target: Target,
    *,
    seed: int | None = None,
    out: str | Path | None = None,
    exists: str = "refuse",
    draws: str | Path | None = None,
    config: RunConfig | None = None,
    start: Run | None = None,
    **training: Any,
) -> Run:
    """Learn a twist for `target`.

    First base draws are collected (if φ has an upper bound), which serve as training data, as exact samples for the
    held-out criterion and for evaluation; then the twist is trained, keeping the best by the held-out criterion.
    Where nothing is said, by DPG on its own fresh draws with a twist that knows what φ says of every token, if φ can be
    asked and drawing is quick; else by `gkl` on the collected draws, or on a pool of its own (docs/choose/method.md).

    Called in several processes that `torchrun` or `accelerate launch` has started, it trains one twist in all of them
    together: each scores its rows of every batch. The first owns the folder, and the others return a run without one.

    Args:
        target: what to sample from.
        seed: of everything random; the same seed gives the same run bit for bit on the same machine.
        out: run folder, or a URL of one in a store, as s3://bucket/run; None keeps everything in memory.
        exists: what to do if `out` exists: "refuse", "resume" or "overwrite", which replaces it when all is done.
        draws: a file of `twistlm collect` for the same target, used instead of new draws; `out` shares it. What is
            resumed goes on with the draws that it began with, and takes the same file or none.
        config: all settings at once; what is given besides overrides it.
        start: a run whose twist is gone on from (of the same kind); none starts at log ψ = 0. Base draws are others
            than that run's, also of the same seed: what it was trained on would prove nothing. To resume, give the
            same again.
        **training: fields of `TrainingConfig`, as num_particles=100 and num_updates=500, and what else
            `RunConfig.changed` takes: `method` is the loss, "ctl", "dpg", …, or "auto" for settings that suit what φ
            can do; `twist` its kind, "low_rank", "mlp", … (`twistlm list`), num_draws the base draws. None leaves a
            setting as it is.

    Raises:
        ConfigError: a setting is unknown or out of range.
        UpperBoundError: base draws are asked for, and φ has no known upper bound.
        ExactSamplesError: `draws` are not of this target, or `start` was trained on what they keep for evaluation.
        RunError: `out` exists and must not, cannot be resumed, or not with these draws or this start, or is being
            written by somebody else.
        StorageError: the system refuses, or files of the run were deleted meanwhile.
        TrainingError: the loss became infinite, or batch after batch has no sequence of φ > 0.
        ProcessError: another of the processes has ended.
    """
    method = training.get("method")
    config = default_config(target, method) if config is None else config
    if method == AUTO:
        config = config.changed(**automatic(target))
        del training["method"]
    config = config.changed(seed=seed, **training)
    processes = Processes.joined()
    with ExitStack() as places:
        # The first process alone opens files.
        place, file = None, None if draws is None else Path(draws)
        if processes.is_first:
            place = None if out is None else places.enter_context(opened(out, write=True))
            file = None if draws is None else places.enter_context(opened(draws, write=False))
        run = _train(target, config, place, exists, file, start, processes)
        if run.folder is not None and out is not None:
            run.folder.url = url_of(out)
        return run


def _train(
    target: Target,
    config: RunConfig,
    out: Path | None,
    exists: str,
    draws: Path | None,
    start: Run | None,
    processes: Processes,
) -> Run:
    """The same, on this machine; `draws` need not be there for any process but the first."""
    processes.of_first(lambda: None if out is None else RunFolder.check(out, exists))
    if draws is None and exists == "resume":
        draws = processes.of_first(lambda: None if out is None else RunFolder.given_draws(out))
    if out is not None or draws is not None or config.num_draws > 0:
        # Before φ is called, which may change what its function holds (a cache, a counter).
        _ = target.fingerprint
    # What can be refused is refused before a folder is made or replaced.
    target.check()
    if config.num_draws == 0 and draws is None and is_conditional(target.potential):
        raise ConfigError(
            "num_draws is 0, and the twist of a target that differs by its condition is judged on collected draws, "
            "which bring the conditions: set num_draws to at least 8, or give draws"
        )
    if is_conditional(target.potential):
        config.training.check_conditional()
    if lookup("twist", config.twist).options.get("needs_conditions") and not is_conditional(target.potential):
        raise ConfigError(
            f"twist {config.twist!r} reads what each sequence is given, and φ gives nothing: choose another twist"
        )
    if config.num_draws > 0 and draws is None:
        bound_of(target.bound_potential)
    if 0 < config.num_draws < FEWEST_DRAWS * len(target.prompts):
        raise ConfigError(
            f"num_draws = {config.num_draws} is too few for {len(target.prompts)} prompts, each of which needs some in "
            f"every fold: give at least {FEWEST_DRAWS * len(target.prompts)}, or 0 for none"
        )
    built = build_twist(target, config, Rng(config.seed).fork("twist"))
    begun = None if start is None else _go_on(built, start)
    given = None if draws is None else processes.of_first(lambda: target.draws(draws))
    before = Origins()
    if start is not None and begun is not None:
        bare = None if given is None else replace(given, draws=given.draws.bare())
        own = None if bare is None else Run(target, config, built, None, bare)
        before = processes.of_first(partial(handed_on, start, own, str(draws)))
    if out is None:
        return _trained(target, config, built, None, given, processes, begun, before)
    check_room(out, _room(config, target, built, given))
    with RunFolder.writing(out, asked(target, config, given, begun), exists) as folder:
        if draws is not None and given is not None:
            folder.share_draws(draws, given)
        return _trained(target, config, built, folder, given, processes, begun, before)


def _go_on(twist: Twist, start: Run) -> str | None:
    """Let the twist begin as that of a run; what tells this beginning from others, None where nothing is taken over."""
    other = start.model.twist
    held, wanted = {} if other is None else other.module.state_dict(), twist.module.state_dict()
    if {name: value.shape for name, value in held.items()} != {name: value.shape for name, value in wanted.items()}:
        raise ConfigError(
            "start has a twist of another kind than the one to be trained; take the same kind and options"
        )
    if other is not None and float(other.head.shrinkage) == 0.0:
        # Nothing better than the base model was found there: times 0, its parameters would have no gradient.
        return None
    twist.module.load_state_dict(held)
    # Two runs of which one went on from the other may have the same twist, and have seen other draws.
    return digest([dict(twist.module.state_dict()), start.begun])


def _trained(
    target: Target,
    config: RunConfig,
    twist: Twist,
    folder: RunFolder | None,
    given: Collection | None,
    processes: Processes,
    begun: str | None,
    before: Origins,
) -> Run:
    """Collect what is not given, and train."""
    rng = Rng(config.seed)
    # What a run has seen that the twist begins as is drawn from another stream, though it may have the same seed.
    drawing = rng if begun is None else rng.fork("start", begun)
    collection = processes.of_first(lambda: _collect(target, config, drawing, folder)) if given is None else given
    run = Run(target, config, twist, folder, collection)
    run.begun, run.recorded = begun, before
    if folder is not None:
        folder.seen = seen_by(run).origins
    sampler, cases = run.sampler(), run.training_cases
    setting = Setting(sampler, cases, collection=run.fold("training"), num_siblings=config.num_siblings)
    held_out = run.fold("held_out")
    # Where none was accepted, those of an event may all be outside it: by weight they would choose the base model.
    if held_out is not None and collection is not None and bool(collection.accepted.any()):
        criterion = held_out_divergence(
            rng.fork("held-out"), held_out, run.held_out_cases or cases, config.max_held_out
        )
    else:
        logger.warning(
            coded("TW204", "no exact samples to judge by: the lower bound on log Z decides which twist is best")
        )
        # Runs of 16 particles each, within what a certificate may spend.
        criterion = negative_lower_bound(
            run.held_out_cases or cases, num_runs=max(2, min(16, config.evaluation.budget // 16))
        )
    certify = partial(_certified, run) if config.evaluation.during_training and processes.is_first else None
    trainer = Trainer(rng.fork("train"), setting, config.training, criterion, folder, held_out, certify, processes)
    run.history, run.informed = trainer.train(), trainer.informed
    return run


def _room(config: RunConfig, target: Target, twist: Twist, given: Collection | None) -> float:
    """Bytes that a run folder takes, roughly: its draws, and the twist with what the optimiser keeps of it."""
    per_token = 4 + 1 + 8 + (4 * (target.lm.feature_size + config.num_siblings) if config.trains_on_draws else 0)
    # Where collecting may stop early, nobody knows.
    count = 0 if given is not None or config.num_exact is not None else config.num_draws
    parameters = [p for p in twist.module.parameters() if p.requires_grad]
    kept = [each for of_one in optimisers.kept(config.training.optimiser, parameters) for each in of_one.values()]
    return count * target.num_tokens * per_token + 4 * _bytes(parameters) + _bytes(kept)


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _certified(run: Run, update: int) -> dict[str, Any]:
    """What is recorded of a certificate during training, with a few texts."""
    # Of its own for every seed: the scatter of certificates over seeds is to include that of evaluation.
    seed = (run.config.seed << 32) + update
    asked = Certification(budget=run.config.evaluation.budget // 4, seed=seed, options={"methods": ("iwae",)})
    certificate = as_json(asked.of(run))
    evaluation, condition = run.fold("evaluation"), None
    if evaluation is not None and evaluation.draws.conditions is not None:
        condition = evaluation.draws.conditions[0]
    names = run.target.prompts.names
    texts = run.sample(NUM_TEXTS, prompt=names[0] if len(names) > 1 else None, condition=condition, seed=update).texts
    return {"certificate": certificate, "texts": texts}


def default_config(target: Target, method: str | None = None) -> RunConfig:
    """Settings where none are given, or the method alone: those of method "auto"."""
    count, (chosen, _) = len(target.prompts), suited(target)
    config = RunConfig().changed(**chosen)
    if not is_conditional(target.potential):
        config = config.changed(**on_policy().get(method or "", {}))
        if not config.trains_on_draws:
            config = replace(config, num_draws=2 * config.num_draws, folds=JUDGING)
        bounded = target.potential.log_upper_bound is not None
        config = replace(config, num_draws=max(config.num_draws, DRAWS_OF_A_PROMPT * count) if bounded else 0)
    # Each prompt is certified by itself: what one may cost is not what hundreds may.
    return config if count == 1 else replace(config, evaluation=EvaluationConfig((4, 16), 64, 64))


def fine_tune(
    run: Run, prompt: Entry, *, out: str | Path | None = None, config: RunConfig | None = None, **training: Any
) -> Run:
    """Go on learning at one prompt alone, from the twist that a run has learned for many.

    Args:
        run: the run; it is left as it is.
        prompt: the name of one of its prompts, or a new one.
        out: folder of the new run; None keeps it in memory.
        config: all settings at once; by default the run's, with as many base draws as `train` takes for one prompt.
        **training: settings in which the new run differs, as for `train`.
    """
    known = run.target.prompts.index(prompt) if isinstance(prompt, str) else None
    prompts = run.target.prompts
    target = run.target.at(prompts.alike(prompt) if known is None else prompts.select([known]))
    if config is None:
        config = replace(run.config, num_draws=RunConfig.num_draws, evaluation=EvaluationConfig())
    return train(target, config=config, out=out, start=run, **training)


def asked(target: Target, config: RunConfig, given: Collection | None = None, begun: str | None = None) -> AskedRun:
    """What a run of these settings, on these draws and with this beginning if any are given, is told from others by."""
    described: dict[str, Any] | None = None
    try:
        described = target.spec()
    except ConfigError as error:
        logger.warning(coded("TW106", "the run is saved without its target, which Run.load must be given (%s)"), error)
    drawn = None if given is None else identity(given)
    return AskedRun(described, config, drawn, begun, target.known_fingerprint)


def collect(target: Target, config: RunConfig, rng: Rng, path: Path | None, *, training: bool) -> Collection:
    """The base draws that `config` asks for; with what training needs of them if they are `training` data too.

    Raises:
        UpperBoundError: φ has no known upper bound.
        NoneAcceptedError: nothing was accepted within the budget.
    """
    return target.collect(
        rng,
        max_draws=config.num_draws,
        num_samples=config.num_exact,
        chunk=min(config.chunk, config.num_draws),
        path=path,
        keep=Keep(training, config.num_siblings if training else 0),
    )


def _collect(target: Target, config: RunConfig, rng: Rng, folder: RunFolder | None) -> Collection | None:
    # One that trains has all its draws, and they stay as many: they may have been given before folders said so.
    if folder is not None and folder.checkpoint.exists() and folder.draws.exists():
        return target.draws(folder.draws)
    if config.num_draws == 0:
        return None
    try:
        return collect(
            target, config, rng, folder.draws if folder is not None else None, training=config.trains_on_draws
        )
    except NoneAcceptedError as error:
        logger.warning(coded("TW101", "%s"), error)
        # Their weights φ train all the same, and say how large Z can be at most.
        kept: Collection = error.collection
        return kept
