"""config.json: what a run was asked, and the versions of everything that did it."""

import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from twistlm.core.errors import ConfigError, ModelError, RunError
from twistlm.core.plugins import distributions
from twistlm.core.storage import STRICT, as_json, as_type, shown_json
from twistlm.potentials.specs import Trust
from twistlm.runs.config import RunConfig
from twistlm.runs.folder.place import load_description
from twistlm.sampling.description import TargetFields, found_near
from twistlm.sampling.target import Target

NAME = "config.json"
FORMAT = 1
# Of settings that differ, so many are told.
MOST_DIFFERENCES = 4


@dataclass(frozen=True)
class AskedRun:
    """What makes a run what it is.

    Attributes:
        target: what `Target.spec` says; None if the potential has no JSON form.
        run: the settings.
        draws: what tells the base draws that are given from others; None of a run that collects its own.
        start: what tells the twist that it begins as from others; None of log ψ = 0.
        fingerprint: of the target's content; None if it cannot be identified.
    """

    target: Mapping[str, Any] | None
    run: RunConfig
    draws: str | None = None
    start: str | None = None
    fingerprint: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON values, as the file holds them."""
        fields: dict[str, Any] = {"format": FORMAT, "target": self.target, "run": self.run.as_dict()}
        # Said of none, too: folders of older versions say nothing.
        fields["start"] = self.start
        if self.draws is not None:
            fields["draws"] = self.draws
        if self.fingerprint is not None:
            fields["fingerprint"] = self.fingerprint
        # Going on with another version of a plugin would make one run of two.
        if plugins := self.run.plugins(self.target):
            fields["plugins"] = plugins
        values: dict[str, Any] = as_json(fields)
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
        fingerprint: of the target; None if it could not be identified, and in folders of older versions.
        draws: what tells the base draws that were given from others; None of a run that collected its own, and in
            folders of older versions.
        start: what tells the twist that it began as from others; None of log ψ = 0, and in folders of older versions.
    """

    __pydantic_config__ = STRICT

    format: int
    target: TargetFields | None
    run: RunConfig
    versions: Mapping[str, str]
    plugins: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str | None = None
    draws: str | None = None
    start: str | None = None

    @property
    def has_draws(self) -> bool:
        """Whether the run was given base draws, or was to collect some."""
        return self.draws is not None or self.run.num_draws > 0

    def target_at(self, run: Path, model: str | Path | None, trust_functions: Trust) -> Target:
        """The target of the run in that folder.

        Args:
            run: the folder.
            model: where the base model's folder is now; None looks where it was, in the run's folder and beside it, as
                is done for classifiers.
            trust_functions: as for `Target.from_spec`.

        Raises:
            ConfigError: the potential has no JSON form, or is a function that is not trusted.
            ModelError: model or classifier is not on this machine, or another one than the run was made with, as may be
                a function.
        """
        if self.target is None:
            raise ConfigError(f"the potential of {run} has no JSON form; pass target=… to Run.load")
        fields = found_near(asdict(self.target), run)
        if model is not None:
            fields["model"] = str(model)
        target = Target.from_spec(fields, trust_functions)
        if self.fingerprint in (None, target.fingerprint):
            return target
        # A folder is known by its files, and a model that was given as an object by its weights.
        if target.changed(model=target.lm).fingerprint != self.fingerprint:
            raise ModelError(
                f"{fields['model']!r}, or a classifier or function of {run}, is not what the run was made with; give "
                "the folder that is, model=…, or the target itself, target=…, or train it again"
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


def differences(there: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The settings in which values of a config.json differ from what is asked now, by name and with both values."""
    before, now = (dict(_settings("", values)) for values in (there, asked))
    different = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    said = [f"{name} {_shown(before.get(name))}, now {_shown(now.get(name))}" for name in different[:MOST_DIFFERENCES]]
    return "; ".join(said + ([f"and {len(different) - len(said)} more"] if len(different) > len(said) else []))


def _settings(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Each value of JSON with the names that lead to it; a list of plain values is one."""
    if isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping) or not value:
        yield name, value
    else:
        for key, part in value.items():
            yield from _settings(f"{name}.{key}" if name else str(key), part)


def _shown(value: Any) -> str:
    return "none" if value is None else shown_json(value)


def versions() -> dict[str, str]:
    """Versions of everything that results depend on."""
    installed = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("twistlm", "torch", "transformers", "numpy", "safetensors"):
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = "not installed"
    return installed | distributions()
