"""What the methods write: base draws beside twisted SMC, for the settings that an experiment is best looked at in."""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from torch import Tensor

from twistlm.core.errors import ConfigError, RunError
from twistlm.core.folders import is_occupied, writing
from twistlm.core.registry import lookup
from twistlm.core.sizes import TOKEN_BYTES, check_sizes
from twistlm.core.storage import save_lines
from twistlm.potentials.conditions import is_conditional
from twistlm.report.record import BASE, TWISTED
from twistlm.report.tables import samples_table
from twistlm.runs.config import RunConfig
from twistlm.runs.experiments import get_preset
from twistlm.runs.folder import RunFolder
from twistlm.runs.run import Run
from twistlm.runs.sweeps.folder import SweepFolder
from twistlm.runs.train import asked, train
from twistlm.sampling.target import Target

PARTICLES_PER_SAMPLE = 64
PICTURES = "gallery.jsonl"


@dataclass(frozen=True)
class Picture:
    """One target of a gallery: a title, and texts with log φ by sampler."""

    title: str
    columns: Mapping[str, list[tuple[str, float]]]


def gallery(
    experiment: str,
    preset: str,
    out: Path,
    *,
    method: str | None = None,
    num_samples: int = 4,
    seed: int = 0,
    exists: str = "refuse",
) -> list[Picture]:
    """Train on every setting of an experiment's gallery and sample from each: `out` gets the runs and gallery.jsonl.

    Raises:
        ConfigError: there is no such experiment, preset or method.
        RunError: a run is there and must not be, or something else.
    """
    chosen: dict[str, tuple[str, Target, RunConfig]] = {}
    for options in lookup("experiment", experiment).options["gallery"]:
        size = get_preset(experiment, preset, **options)
        # A conservative name: it becomes a folder.
        name = "-".join(f"{key}-{value}".replace(" ", "-") for key, value in options.items()) or "run"
        about = ", ".join(f"{key} = {value}" for key, value in options.items()) or experiment
        chosen[name] = about, size.target(), _simplified(size.config(method), size.target()).changed(seed=seed)
    _check(out, chosen.keys(), exists)
    # What can be refused is refused before anything is made or replaced.
    for _, target, _ in chosen.values():
        check_sizes(TOKEN_BYTES * target.num_tokens * PARTICLES_PER_SAMPLE, num_samples=num_samples)
        target.check()
    with writing(out, replace=exists == "overwrite", goes_on=partial(_is_of, chosen)) as draft:
        # Somebody else may have been quicker.
        _check(out, chosen.keys(), exists)
        pictures: list[Picture] = []
        policy = "refuse" if exists == "refuse" else "resume"
        for name, (about, target, config) in chosen.items():
            run = train(target, config=config, out=draft.path / name, exists=policy)
            pictures += _pictures(run, about, num_samples, seed)
        rows = [
            {"picture": picture.title, "sampler": sampler, "text": text, "log_phi": log_phi}
            for picture in pictures
            for sampler, samples in picture.columns.items()
            for text, log_phi in samples
        ]
        save_lines(draft.path / PICTURES, rows)
    return pictures


def _simplified(config: RunConfig, target: Target) -> RunConfig:
    """Without what a gallery has no use for."""
    # At a high power of φ rejection accepts nothing, whatever it costs.
    num_draws = None if is_conditional(target.potential) else 0
    return config.changed(evaluation={"during_training": False}, num_draws=num_draws)


def _check(out: Path, names: Set[str], exists: str) -> None:
    """Refuse what a gallery of the runs of these names may not write to or replace.

    Raises:
        RunError: a run or another gallery is there and must not be, or something that is neither.
    """
    if RunFolder.is_one(out) or SweepFolder.is_one(out):
        raise RunError(f"{out} is the folder of a run or a sweep, so it is left alone; choose another --out")
    for name in names:
        RunFolder.check(out / name, exists)
    there = _entries(out)
    if exists == "overwrite" and (foreign := sorted(there - names - {PICTURES})):
        raise RunError(
            f"{out} is not this gallery's folder ({foreign[0]} is there), so it is left alone; choose another --out"
        )
    if PICTURES in there and (exists == "refuse" or (exists == "resume" and names.isdisjoint(there))):
        raise RunError(f"{out / PICTURES} exists already, of other runs than this gallery's; choose another --out")


def _is_of(chosen: Mapping[str, tuple[str, Target, RunConfig]], out: Path) -> bool:
    """Whether a folder has runs of this gallery, asked just so, and nothing else."""
    runs = _entries(out) - {PICTURES}
    return runs <= chosen.keys() and all(RunFolder.is_of(out / name, asked(*chosen[name][1:])) for name in runs)


def _entries(out: Path) -> set[str]:
    """The names of what is in a folder, but for what is hidden, as its lock is."""
    return {each.name for each in out.iterdir() if not each.name.startswith(".")} if is_occupied(out) else set()


def show(pictures: list[Picture], console: Console) -> None:
    """Every picture as a table."""
    for picture in pictures:
        console.print(f"\n{picture.title} (log φ, text after the prompt)", markup=False, highlight=False)
        console.print(samples_table(picture.columns))


def _pictures(run: Run, about: str, num_samples: int, seed: int) -> Iterator[Picture]:
    for condition in _conditions(run):
        title = about if condition is None else f"{about}; to be followed by {condition!r}"
        columns = {
            BASE: run.base_samples(num_samples, condition=condition, seed=seed),
            f"{TWISTED}, {PARTICLES_PER_SAMPLE} particles": run.sample(
                num_samples, num_particles=PARTICLES_PER_SAMPLE, condition=condition, seed=seed
            ),
        }
        yield Picture(
            title,
            {name: list(zip(drawn.texts, drawn.log_phi.tolist(), strict=True)) for name, drawn in columns.items()},
        )


def _conditions(run: Run) -> list[str | None]:
    """Where targets differ: the ends of a few stories that no run has trained on."""
    evaluation = run.fold("evaluation")
    if evaluation is None or evaluation.draws.conditions is None:
        return [None]
    conditions = evaluation.draws.conditions
    texts = run.target.lm.decode(list(conditions[:32]))
    # Only text that is encoded as it was drawn can be asked for again.
    again = [text for text, tokens in zip(texts, conditions, strict=False) if _survives(run.target, text, tokens)]
    return list(again[:4])


def _survives(target: Target, text: str, tokens: Tensor) -> bool:
    try:
        asked = target.case(text).given
    except ConfigError:
        return False
    return asked is not None and asked.tolist() == tokens.tolist()
