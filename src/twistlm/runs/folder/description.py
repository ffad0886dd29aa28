"""config.json: what a run was asked, and the versions of everything that did it."""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from twistlm.core.errors import ConfigError, ModelError, RunError
from twistlm.core.plugins import distributions
from twistlm.core.storage import STRICT, as_type
from twistlm.potentials.specs import Trust
from twistlm.runs.config import BEFORE, RunConfig
from twistlm.runs.folder.place import load_description
from twistlm.sampling.description import TargetFields
from twistlm.sampling.target import Target

NAME = "config.json"
FORMAT = 1


@dataclass(frozen=True)
class AskedRun:
    """What makes a run what it is.

    Attributes:
        target: what `Target.spec` says; None if the potential has no JSON form.
        run: the settings.
        draws: what tells the base draws that are given from others; None of a run that collects its own.
    """

    target: Mapping[str, Any] | None
    run: RunConfig
    draws: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON values, as the file holds them."""
        fields: dict[str, Any] = {"format": FORMAT, "target": self.target, "run": self.run.as_dict()}
        if self.draws is not None:
            fields["draws"] = self.draws
        # Going on with another version of a plugin would make one run of two.
        if plugins := self.run.plugins(self.target):
            fields["plugins"] = plugins
        values: dict[str, Any] = json.loads(json.dumps(fields))
        return values


@dataclass(frozen=True)
class Described:
    """All that config.json says, with every setting known: what continuing or loading a run needs.

    Attributes:
        format: of the folder.
        target: None if the potential has no JSON form.
        run: the settings.
        versions: of everything that results depend on.
        plugins: what tells parts of others from their later versions.
        fingerprint: of the target, in folders that were made to be used elsewhere.
        draws: what tells the base draws that were given from others; None of a run that collected its own, and in
            folders of older versions.
    """

    __pydantic_config__ = STRICT

    format: int
    target: TargetFields | None
    run: RunConfig
    versions: Mapping[str, str]
    plugins: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str | None = None
    draws: str | None = None

    @property
    def has_draws(self) -> bool:
        """Whether the run was given base draws, or was to collect some."""
        return self.draws is not None or self.run.num_draws > 0

    def target_at(self, run: Path, model: str | Path | None, trust_functions: Trust) -> Target:
        """The target of the run in that folder.

        Args:
            run: the folder.
            model: where the base model's folder is now; None looks where it was, in the run's folder and beside it.
            trust_functions: as for `Target.from_spec`.

        Raises:
            ConfigError: the potential has no JSON form, or is a function that is not trusted.
            ModelError: model or classifier is not on this machine, or another one than the run was made with.
        """
        if self.target is None:
            raise ConfigError(f"the potential of {run} has no JSON form; pass target=… to Run.load")
        fields = asdict(self.target)
        was = Path(fields["model"])
        near = [] if not was.is_absolute() or was.is_dir() else [run / was.name, run.parent / was.name]
        fields["model"] = str(next((each for each in near if each.is_dir()), was) if model is None else model)
        target = Target.from_spec(fields, trust_functions)
        if self.fingerprint is not None and target.fingerprint != self.fingerprint:
            raise ModelError(
                f"{fields['model']!r}, or a classifier of {run}, is not what the run was made with; give the folder "
                "that is, model=…, or train it again"
            )
        return target


@dataclass(frozen=True)
class _Loss:
    loss: str


@dataclass(frozen=True)
class _Run:
    training: _Loss
    twist: str
    seed: int


@dataclass(frozen=True)
class _Config:
    run: _Run
    target: TargetFields | None
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Outline:
    """What config.json says as far as a reader is told: settings of other versions may be among the values.

    Attributes:
        method: the loss.
        twist: its kind.
        seed: of everything random.
        target: None if the potential has no JSON form.
        values: everything, as it stands in the file.
    """

    method: str
    twist: str
    seed: int
    target: TargetFields | None
    values: Mapping[str, Any]

    @staticmethod
    def of(values: Mapping[str, Any], where: Path) -> "Outline":
        """What the values of the file at `where` say.

        Raises:
            RunError: they say something else.
        """
        config = as_type(_Config, values, str(where))
        return Outline(config.run.training.loss, config.run.twist, config.run.seed, config.target, values)


def read(path: Path) -> dict[str, Any]:
    """The values of a run folder's config.json.

    Raises:
        RunError: there is none, or it is corrupt or of another version.
    """
    config = load_description(path / NAME)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        written = config.get("format") if isinstance(config, dict) else None
        raise RunError(f"{path} was written in format {written} and this version reads format {FORMAT}; train it again")
    match config:
        case {"run": {"training": {"num_conditions": count} as training}}:
            # What the setting was called before prompts came in sets.
            del training["num_conditions"]
            training["num_cases"] = count
    return config


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a config.json with the settings that it leaves out, as they were before there was a choice."""
    match values:
        case {"run": {"training": dict(training)} as run}:
            return {**values, "run": {**run, "training": {**BEFORE, **training}}}
    return dict(values)


def versions() -> dict[str, str]:
    """Versions of everything that results depend on."""
    installed = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("twistlm", "torch", "transformers", "numpy", "safetensors"):
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = "not installed"
    return installed | distributions()
