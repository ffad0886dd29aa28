"""A sweep: every method with every seed on one experiment, resumable run by run.

Exact samples are collected once and shared: all methods are to be judged by the same.
Every run is an ordinary run folder, and is finished when it is marked as done.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twistlm.certificates.bounds import main_bounds
from twistlm.certificates.evidence import FEWEST_EXACT
from twistlm.core.advice import coded
from twistlm.core.errors import ConfigError, NoneAcceptedError, RunError, TwistError, UpperBoundError
from twistlm.core.remote import publish, shown
from twistlm.core.rng import Rng
from twistlm.core.sizes import RECORD_BYTES, check_sizes
from twistlm.core.work import HERE, Engine
from twistlm.potentials.base import power_of
from twistlm.runs.aim import Aim, aimed
from twistlm.runs.config import FOLDS, RunConfig
from twistlm.runs.experiments import Preset
from twistlm.runs.experiments.methods import METHODS, in_order
from twistlm.runs.run import Run
from twistlm.runs.sweeps.folder import AskedSweep, AskedTarget, Cell, Failure, Reference, SweepFolder
from twistlm.runs.sweeps.pooled import Pooled
from twistlm.runs.train import collect, train
from twistlm.sampling.target import Target

logger = logging.getLogger("twistlm")

# When SMC resamples, in each certificate of a run: "after" training as usual, and at every step. IWAE never does.
CERTIFICATES: dict[str, dict[str, Any]] = {
    "after": {"ess_threshold": 0.5},
    "every_step": {"ess_threshold": 1.0, "methods": ("smc",)},
}
# A reference takes so many times the particles of a certificate.
REFERENCE = 2
# The preset where none is named.
SIZE = "small"
NOTHING_CHANGED = Aim()
# Settings that a sweep may give every method in place of the preset's.
FOR_ALL = ("twist", "num_updates", "optimiser", "learning_rate", "source", "num_draws", "held_out_prompts")


@dataclass(frozen=True)
class Request:
    """What to sweep over.

    Attributes:
        experiment: a registered experiment; None for a target of one's own, which the aim then is all of.
        preset: its size; None takes "small".
        options: the experiment's options.
        aim: what takes the place of parts of its target.
        methods: registered losses, weighted sums of them, or names of the preset's own ("pooled").
        num_seeds: seeds 0, 1, … of every method.
        twist: of every method; None takes the preset's for each.
        num_updates: at most so many updates; None takes the preset's.
        optimiser: of every method; None takes the preset's.
        learning_rate: of every method; None takes the preset's for each.
        source: of the target's samples; None takes the preset's.
        num_draws: base draws that all runs share; None takes the preset's.
        held_out_prompts: share of a set of prompts that training does not see; None takes the preset's.
    """

    experiment: str | None
    preset: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    aim: Aim = NOTHING_CHANGED
    methods: tuple[str, ...] = METHODS
    num_seeds: int = 5
    twist: str | None = None
    num_updates: int | None = None
    optimiser: str | None = None
    learning_rate: float | None = None
    source: str | None = None
    num_draws: int | None = None
    held_out_prompts: float | None = None

    @property
    def size(self) -> str:
        """The preset's name, as a sweep records it."""
        return self.preset or (SIZE if self.experiment is not None else "default")

    def chosen(self) -> Preset:
        """The experiment's preset on the target that is asked for."""
        return aimed(self.experiment, self.preset, SIZE, self.options, self.aim)

    def config(self, method: str) -> RunConfig:
        """The settings of a method's runs, but for the seed."""
        return self.chosen().config(method).changed(**self.for_all)

    @property
    def for_all(self) -> dict[str, Any]:
        """What takes the place of the preset's settings for every method; None for what does not."""
        return {name: getattr(self, name) for name in FOR_ALL}


def parse_methods(text: str) -> tuple[str, ...]:
    """Methods as the command line names them: "all", or losses and names of the preset's own with commas between.

    Raises:
        ConfigError: none is named. (What a preset does not know, `Request.config` refuses.)
    """
    names = in_order(METHODS if text == "all" else [name.replace(" ", "") for name in text.split(",")])
    for name in names:
        if not name:
            raise ConfigError(f"methods {text!r} names an empty one; write 'all', or losses with commas: ctl,ppo")
    return tuple(names)


def sweep(request: Request, out: Path, *, engine: Engine | None = None, overwrite: bool = False) -> SweepFolder:
    """Do every run of a sweep that is not done yet; prints a line for each.

    Args:
        request: what to sweep over.
        out: the sweep's folder; asking the same again continues it, and the same with more methods or seeds adds them.
        engine: where runs are done (`twistlm.engine`); by default one after the other in this process.
        overwrite: start over.

    Raises:
        ConfigError: a setting is unknown or out of range.
        RunError: `out` is something else, or a sweep that was asked otherwise, or whose draws do not do for the methods
            that are added; or some runs failed, the others done.
    """
    check_sizes(RECORD_BYTES, seeds=request.num_seeds)
    settings = {method: request.config(method) for method in request.methods}
    target = request.chosen().target()
    asked = AskedSweep(
        experiment=request.experiment or "own target",
        preset=request.size,
        options={**request.options, **request.aim.described},
        methods=list(request.methods),
        seeds=request.num_seeds,
        **request.for_all,
        target=AskedTarget(target.fingerprint, power_of(target.potential)),
        settings={method: config.as_dict() for method, config in settings.items()},
        plugins={name: each for config in settings.values() for name, each in config.plugins(None).items()},
    )
    SweepFolder.check(out, overwrite=overwrite)
    if SweepFolder.is_one(out) and not overwrite:
        _check_draws(out, settings)
    # What can be refused is refused before a folder is made or replaced.
    target.check()
    with SweepFolder.writing(out, asked, overwrite=overwrite) as folder:
        todo = [cell for cell in folder.cells if not folder.finished(cell)]
        if todo:
            draws = _collect(folder, target, settings)
            # Now that the first result is there.
            folder.take_place()
            _run(
                folder,
                [_Piece(request, folder.path, folder.draws if draws else None, cell) for cell in todo],
                engine or HERE,
            )
        # Also where an earlier attempt was killed just before.
        _refer(request, folder)
        _report_failures(folder)
    place = shown(out)
    print(f"all {len(folder.cells)} runs are done: {place}; see `twistlm report {place}`")
    return folder


def _report_failures(folder: SweepFolder) -> None:
    """Raises RunError if there are any."""
    if failures := folder.failures:
        reasons: dict[tuple[str, str], list[str]] = {}
        for cell, failure in failures.items():
            reasons.setdefault((cell.method, failure.message), []).append(str(cell.seed))
        which = "; ".join(f"{method}, seed {' '.join(seeds)}: {why}" for (method, why), seeds in reasons.items())
        raise RunError(f"{len(failures)} of {len(folder.cells)} runs failed, the others are done. {which}")


def _check_draws(out: Path, settings: Mapping[str, RunConfig]) -> None:
    """Raise RunError if methods are to be added to a sweep whose draws are others than all of them would share."""
    there = {method: settings[method] for method in SweepFolder.open(out).asked.methods if method in settings}
    if there and _shared(there) != _shared(settings):
        added = ", ".join(method for method in settings if method not in there)
        raise RunError(
            f"{shown(out)} has other draws than {added} would share with its methods; sweep them into another --out, "
            "or all anew with --overwrite"
        )


def _shared(settings: Mapping[str, RunConfig]) -> tuple[Any, ...]:
    """What the draws that all methods share depend on."""
    first, training = _asks(settings)
    return first.num_draws, first.num_exact, first.chunk, first.num_siblings if training else None


def _asks(settings: Mapping[str, RunConfig]) -> tuple[RunConfig, bool]:
    """Whose settings of draws are taken for all methods, and whether any of them trains on what is drawn."""
    configs = list(settings.values())
    return configs[0], any(config.trains_on_draws for config in configs)


def _collect(folder: SweepFolder, target: Target, settings: Mapping[str, RunConfig]) -> bool:
    """Collect the shared draws unless they are there; False where no exact samples can be had."""
    config, training = _asks(settings)
    if config.num_draws == 0:
        return False
    try:
        collection = collect(target, config, Rng(0, ("sweep",)), folder.draws, training=training)
    except (NoneAcceptedError, UpperBoundError) as error:
        logger.warning(coded("TW101" if isinstance(error, NoneAcceptedError) else "TW102", "%s"), error)
        return False
    accepted = len(collection.split(config.folds)[FOLDS.index("evaluation")].exact)
    print(
        f"{len(collection.exact)} exact samples among {len(collection.draws)} draws, {accepted} of them for evaluation"
    )
    if accepted < FEWEST_EXACT:
        logger.warning(coded("TW103", "too few exact samples to evaluate by: lower bounds only, as if there were none"))
        return False
    return True


def _run(folder: SweepFolder, pieces: list["_Piece"], engine: Engine) -> None:
    total, before = len(folder.cells), len(folder.cells) - len(pieces)
    print(f"{total} runs, {before} of them done already")
    failures, start = {}, time.monotonic()
    folder.failures = {}
    with engine.start(_no_context) as workers:
        for done, failure in enumerate(workers.do(pieces, None), 1):
            cell = pieces[done - 1].cell
            if failure is not None:
                failures[cell] = failure
                folder.failures = failures
            left = (time.monotonic() - start) / done * (len(pieces) - done) / 60
            publish(folder.path)
            how = "done" if failure is None else f"failed: {failure.message}"
            print(f"{cell}: {how} ({before + done} of {total}, about {left:.0f} min left)", flush=True)


def _no_context() -> None:
    """Every run loads what it needs."""


@dataclass(frozen=True)
class _Piece:
    """One run of the sweep at `path` from wherever it is to its certificate, or why that cannot be had."""

    request: Request
    path: Path
    draws: Path | None
    cell: Cell

    def __call__(self, context: None) -> Failure | None:
        try:
            self._do()
        except TwistError as error:
            return Failure(type(error).__name__, " ".join(str(error).split()))
        return None

    def _do(self) -> None:
        config, folder, cell = self.request.config(self.cell.method), SweepFolder(self.path), self.cell
        with _named(cell):
            run = train(
                self.request.chosen().target(),
                config=config if self.draws is not None else config.changed(num_draws=0),
                seed=cell.seed,
                out=folder.run(cell).path,
                exists="resume",
                draws=self.draws,
            )
            # A seed of its own: the scatter over seeds is to include that of evaluation.
            certificates = {name: run.evaluate(seed=cell.seed, save=False, **how) for name, how in CERTIFICATES.items()}
        folder.run(cell).evaluations.finish(certificates)


def _refer(request: Request, folder: SweepFolder) -> None:
    """Bound log Z over all conditions by the best run, if the target differs by condition and that is not done."""
    pooled = Pooled(folder)
    if not pooled.conditional or folder.has_reference(pooled.best.cell):
        return
    cell, sandwich = pooled.best.cell, main_bounds(pooled.best.after.bounds)
    print(f"bounding log Z over all conditions by the best run ({cell})", flush=True)
    run = Run.load(folder.run(cell).path, request.chosen().target())
    particles, conditions = REFERENCE * sandwich.num_particles, run.config.evaluation.num_samples
    budget = particles * conditions
    certificate = run.evaluate(particles, budget=budget, seed=0, save=False, methods=(sandwich.method,))
    folder.save_reference(Reference(str(cell), certificate))


@contextmanager
def _named(cell: Cell) -> Iterator[None]:
    """Warnings say which run they are about."""

    def name(record: logging.LogRecord) -> bool:
        record.msg = f"{cell}: {record.msg}"
        return True

    logger.addFilter(name)
    try:
        yield
    finally:
        logger.removeFilter(name)
