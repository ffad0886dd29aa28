"""The sweep folder: one target, every method with every seed, each in a run folder of its own::

    sweep.json                       what was asked, and the versions that did it
    draws.safetensors                base draws and exact samples, collected once and shared by all runs
    METHOD/seed-K/                   a run folder (`twistlm.runs.folder`), which says whether the run is finished
    reference.json                   log Z where the target differs by condition, under the best of the runs
    failures.json                    runs that could not be done, and why; absent if there are none
    table.md, table.csv, table.tex   what `twistlm report` writes
    plots/                           its charts

Asking the same again continues it, and asking the same of more methods or seeds makes it larger, what is there staying
as it is; asking anything else of the same folder is refused.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from glob import escape
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval, MinLen, Predicate

from twistlm.certificates.certificate import Certificate
from twistlm.core.errors import RunError, TwistError
from twistlm.core.exports import frame
from twistlm.core.folders import Draft, is_occupied, writing
from twistlm.core.storage import as_json, as_type, load_json, load_typed, remove_temporary, save_json
from twistlm.runs.folder import RunFolder, versions
from twistlm.runs.folder.evaluations import DONE
from twistlm.runs.folder.place import check_own, load_description, says
from twistlm.runs.folder.run_folder import DRAWS, NAMES

NAME, REFERENCE, FAILURES, PLOTS = "sweep.json", "reference.json", "failures.json", "plots"
FORMAT = 1
# What has an entry for each method, or for what its settings name.
GROWING = ("methods", "settings", "plugins")
# More is no sweep but a damaged number.
MOST_SEEDS = 100_000
# All that a command leaves in a sweep's folder (`place.check_own`), but for its runs.
OWN = (NAME, DRAWS, REFERENCE, FAILURES, "table.md", "table.csv", "table.tex", f"{PLOTS}/*.png", f"{PLOTS}/*.pdf")
SEEDS = tuple(f"seed-{count * '[0-9]'}" for count in range(1, len(str(MOST_SEEDS))))


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.method}, seed {self.seed}"


def _folder_of(method: str) -> str:
    return method.replace("*", "x")


def _is_a_name(method: str) -> bool:
    return "/" not in method and "\0" not in method and bool(method.strip("."))


@dataclass(frozen=True)
class Format:
    """Of a sweep's folder."""

    format: int


@dataclass(frozen=True)
class AskedTarget:
    """What a sweep records of its target."""

    __pydantic_config__ = {"allow_inf_nan": False}  # noqa: RUF012 (pydantic's, and no field)

    fingerprint: str
    beta: float


@dataclass(frozen=True, kw_only=True)
class AskedSweep:
    """What a sweep was asked: sweep.json, but for its format and its versions.

    Attributes:
        experiment, preset, options: what the target is of.
        methods: each becomes a folder.
        seeds: so many runs of every method.
        twist, num_updates, optimiser, learning_rate, source, num_draws, held_out_prompts: in place of the preset's;
            None where they are not.
        target: what tells it from others.
        settings: of each method's runs, but for the seed.
        plugins: what tells parts of others from their later versions.
    """

    experiment: str
    preset: str
    options: Mapping[str, Any]
    methods: Annotated[list[Annotated[str, Predicate(_is_a_name)]], MinLen(1)]
    seeds: Annotated[int, Interval(ge=1, le=MOST_SEEDS)]
    twist: str | None = None
    num_updates: int | None = None
    optimiser: str | None = None
    learning_rate: float | None = None
    source: str | None = None
    num_draws: int | None = None
    held_out_prompts: float | None = None
    target: AskedTarget
    settings: Mapping[str, Mapping[str, Any]]
    plugins: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON values, as the file holds them."""
        fields = asdict(self)
        if not self.plugins:
            del fields["plugins"]
        values: dict[str, Any] = as_json(fields)
        return values


@dataclass(frozen=True)
class Failure:
    """Why a run could not be done: the kind of error and its one-line message."""

    error: str
    message: str


@dataclass(frozen=True)
class FailureRow:
    """A run that could not be done."""

    method: str
    seed: int
    error: str
    message: str


@dataclass(frozen=True)
class Reference:
    """A certificate for log Z alone where the target differs by condition, and the run it is of."""

    run: str
    certificate: Certificate


class SweepFolder:
    """One sweep's files. Make it with `writing`, `create` or `open`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def draws(self) -> Path:
        """Base draws and exact samples of all runs."""
        return self.path / DRAWS

    @property
    def plots(self) -> Path:
        """The folder of its pictures."""
        return self.path / PLOTS

    def table(self, ending: str) -> Path:
        """The file of its table, as "md", "csv" or "tex"."""
        return self.path / f"table.{ending}"

    @property
    def _reference(self) -> Path:
        return self.path / REFERENCE

    @property
    def _failures(self) -> Path:
        return self.path / FAILURES

    @staticmethod
    def check(path: Path, *, overwrite: bool = False) -> None:
        """Refuse early what no sweep may be written to; or replace, to `overwrite` it.

        Raises:
            RunError: something else is there, or is in it and would be deleted; or its sweep.json is corrupt, so that
                nobody can tell.
            StorageError: the system refuses to say.
        """
        fields = {"format": int, "experiment": str, "methods": list}
        if path.is_file() or (is_occupied(path) and not says(path / NAME, fields)):
            raise RunError(f"{path} is not a sweep's folder, so it is left alone; choose another --out")
        if overwrite and is_occupied(path):
            methods = [escape(_folder_of(str(each))) for each in load_description(path / NAME)["methods"]]
            runs = (f"{method}/{seed}/{name}" for method in methods for seed in SEEDS for name in NAMES)
            check_own(path, (*OWN, *runs), "a sweep's folder")

    @staticmethod
    def is_one(path: Path) -> bool:
        """Whether a sweep's folder is there."""
        return (path / NAME).is_file()

    @staticmethod
    @contextmanager
    def writing(path: Path, asked: AskedSweep, *, overwrite: bool = False) -> Iterator["SweepFolder"]:
        """A folder for a sweep, or the one that is there if it was asked the same; nobody else can write to it.

        Args:
            path: the folder.
            asked: what it is asked; of one that is there it may have more methods and seeds.
            overwrite: replace a sweep that is there, once `take_place` is called. If that was killed, the same goes on.

        Raises:
            RunError: something else is there, a sweep that was asked otherwise, or somebody else is writing to it.
            StorageError: the system refuses.
        """
        SweepFolder.check(path, overwrite=overwrite)
        whole = {"format": FORMAT, **asked.as_dict(), "versions": versions()}
        with writing(path, replace=overwrite, goes_on=partial(_is_of, whole)) as draft:
            SweepFolder.check(path, overwrite=overwrite)
            folder = SweepFolder._begun(draft.path, whole)
            folder._draft = draft
            remove_temporary(draft.path)
            yield folder
            folder.take_place()

    @staticmethod
    def create(path: Path, asked: AskedSweep) -> "SweepFolder":
        """`writing` for one that is not to be held any longer."""
        with SweepFolder.writing(path, asked) as folder:
            return folder

    _draft: Draft | None = None

    def take_place(self) -> None:
        """Replace what was in the place of this folder, if it was made to do that."""
        if self._draft is not None:
            self._draft.take_place()
            self.path = self._draft.path
            self._draft = None

    @staticmethod
    def _begun(path: Path, whole: Mapping[str, Any]) -> "SweepFolder":
        if not SweepFolder.is_one(path):
            save_json(path / NAME, whole)
            return SweepFolder(path)
        folder = SweepFolder.open(path)
        asked = {name: value for name, value in whole.items() if name != "versions"}
        differences = _differences(folder._values, asked)
        if not differences:
            return folder
        if not _is_more(folder._values, asked):
            raise RunError(
                f"{path} holds a sweep that was asked otherwise: {differences}. Ask the same again to continue it, or "
                "the same with more methods or seeds, choose another --out, or replace it with --overwrite"
            )
        save_json(path / NAME, {**asked, "versions": folder._values["versions"]})
        return SweepFolder.open(path)

    @staticmethod
    def open(path: Path) -> "SweepFolder":
        """An existing sweep.

        Raises:
            RunError: it is no sweep's folder, or corrupt, or from another version.
        """
        if not (path / NAME).exists():
            raise RunError(f"{path} is not a sweep's folder (it has no {NAME}); make one with `twistlm sweep`")
        folder = SweepFolder(path)
        written = as_type(Format, folder._values, str(path / NAME)).format
        if written != FORMAT:
            raise RunError(
                f"{path} was written in format {written} and this version reads format {FORMAT}; sweep again with "
                "--overwrite"
            )
        # Read here once, for errors that come early.
        _ = folder.asked
        return folder

    @cached_property
    def asked(self) -> AskedSweep:
        """What was asked.

        Raises:
            RunError: the file says something else.
        """
        return as_type(AskedSweep, self._values, str(self.path / NAME))

    @cached_property
    def _values(self) -> dict[str, Any]:
        """Everything that the file says."""
        values: dict[str, Any] = load_json(self.path / NAME)
        return values

    @property
    def cells(self) -> list[Cell]:
        """Every run: all methods with seed 0, then with seed 1, …, so that an early look compares them."""
        return [Cell(method, seed) for seed in range(self.asked.seeds) for method in self.asked.methods]

    def run(self, cell: Cell) -> RunFolder:
        """Where a run is, or will be."""
        return RunFolder(self.path / _folder_of(cell.method) / f"seed-{cell.seed}")

    def finished(self, cell: Cell) -> bool:
        """Whether a run is done."""
        return self.run(cell).evaluations.is_done

    @property
    def failures(self) -> dict[Cell, Failure]:
        """Runs that could not be done when the sweep last ran, and are not done since."""
        rows = load_typed(self._failures, list[FailureRow]) if self._failures.exists() else []
        failed = {Cell(row.method, row.seed): Failure(row.error, row.message) for row in rows}
        return {cell: failure for cell, failure in failed.items() if not self.finished(cell)}

    @failures.setter
    def failures(self, failed: Mapping[Cell, Failure]) -> None:
        if failed:
            save_json(self._failures, [{**asdict(cell), **asdict(failure)} for cell, failure in failed.items()])
        else:
            self._failures.unlink(missing_ok=True)

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` with a row for each number of each finished run: method, seed, sampler ("after",
        "every_step", "before"), and the columns of `Certificate.to_pandas`.

        Raises:
            RunError: a file is damaged.
            ConfigError: pandas is not installed.
        """
        return frame(
            [
                {"method": cell.method, "seed": cell.seed, "sampler": name, **row}
                for cell in self.cells
                if self.finished(cell)
                for name, certificate in self.run(cell).evaluations.finished().certificates.items()
                for row in certificate.rows()
            ]
        )

    def load_reference(self) -> Reference | None:
        """log Z where the target differs by condition; None elsewhere, and until it is there.

        Raises:
            RunError: the file is damaged.
        """
        if not self._reference.exists():
            return None
        return load_typed(self._reference, Reference)

    def has_reference(self, best: Cell) -> bool:
        """Whether log Z was bounded by this run, and after the last of all was done.

        Raises:
            RunError: the file is damaged.
        """
        reference = self.load_reference()
        if reference is None or reference.run != str(best):
            return False
        made = self._reference.stat().st_mtime_ns
        done = [cell for cell in self.cells if self.finished(cell)]
        return all((self.run(cell).path / DONE).stat().st_mtime_ns <= made for cell in done)

    def save_reference(self, reference: Reference) -> None:
        """Keep what bounds log Z."""
        save_json(self._reference, reference)


def _is_of(asked: Mapping[str, Any], path: Path) -> bool:
    """Whether a sweep that was asked just this is there."""
    try:
        return SweepFolder.open(path)._values == asked
    except TwistError:
        return False


def _is_more(there: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    """Whether all of the sweep that is there is asked for, in just the same way, and more."""

    def items(values: Mapping[str, Any], name: str) -> set[str]:
        found = values.get(name, [])
        return {json.dumps(each, sort_keys=True) for each in (found.items() if isinstance(found, dict) else found)}

    others = {name for name in asked if there.get(name) != asked[name]} - {*GROWING, "seeds"}
    return not others and there["seeds"] <= asked["seeds"] and all(items(there, n) <= items(asked, n) for n in GROWING)


def _differences(there: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Names and values of what differs; "" if nothing does."""
    names = [name for name in asked if there.get(name) != asked[name]]
    # "target" and "settings" follow from the others, unless twistlm itself has changed in between.
    short = [name for name in names if not isinstance(asked[name], dict) or name == "options"]
    if short:
        return "; ".join(f"{name} {_shown(there.get(name))}, now {_shown(asked[name])}" for name in short)
    return ", ".join(f"another {name}, though it was asked by the same names" for name in names)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(value)
    if isinstance(value, dict):
        return " ".join(f"{name}={each}" for name, each in value.items()) or "none"
    return "the preset's" if value is None else str(value)
