"""Experiments: a target with settings that are known to suit it, in sizes called presets. One small file each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from twistlm.api import RunConfig
from twistlm.errors import ConfigError
from twistlm.registry import lookup, register
from twistlm.target import Target


@dataclass(frozen=True)
class Evaluation:
    """Settings of a certificate."""

    num_particles: tuple[int, ...] = (4, 16, 64)
    num_samples: int = 512
    budget: int = 512


@dataclass(frozen=True)
class Preset:
    """One size of an experiment: `target` builds what is sampled from; `about` says what it is for and its cost."""

    about: str
    target: Callable[[], Target]
    run: RunConfig
    evaluation: Evaluation = field(default_factory=Evaluation)


Presets = Mapping[str, Preset]


def experiment(name: str) -> Callable[[Callable[[], Presets]], Callable[[], Presets]]:
    """Decorator: register a function that returns an experiment's presets."""
    return register("experiment", name)


def get_preset(name: str, preset: str) -> Preset:
    """A preset of a registered experiment.

    Raises:
        ConfigError: there is no such experiment or preset.
    """
    presets: Presets = lookup("experiment", name).value()
    if preset not in presets:
        raise ConfigError(f"experiment {name!r} has no preset {preset!r}; choose one of: {', '.join(presets)}")
    return presets[preset]
