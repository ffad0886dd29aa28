"""Experiments: a target with settings that are known to suit it, in sizes called presets. One small file each."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from twistlm.core.errors import ConfigError
from twistlm.core.registry import lookup, register
from twistlm.runs.automatic import AUTO, automatic, sized
from twistlm.runs.config import RunConfig
from twistlm.sampling.target import Target
from twistlm.training.losses import objective


@dataclass(frozen=True)
class Preset:
    """One size of an experiment.

    Attributes:
        about: what it is for, and its cost.
        target: builds what is sampled from.
        run: the settings, those of its own method included.
        methods: for each further method (a loss, or a name of its own that says its `method`), the training settings in
            which it differs, or its `twist` and `twist_options`; a method that is not listed differs by the sources
            that its roles ask for alone.
    """

    about: str
    target: Callable[[], Target]
    run: RunConfig
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def config(self, method: str | None = None) -> RunConfig:
        """The settings for a method; None for the preset's own, "auto" for what suits the target's potential.

        With "auto" it draws no more sequences than the preset's own do.

        Raises:
            ConfigError: there is no such loss.
        """
        if method is None or method == self.run.training.loss:
            return self.run
        if method == AUTO:
            most = self.run.training.num_particles * self.run.training.num_updates
            return self.run.changed(**sized(automatic(self.target()), most))
        settings = {"method": method, **self.methods.get(method, {})}
        return self.run.changed(**{**self._sources(settings["method"]), **settings})

    def _sources(self, method: str) -> dict[str, str]:
        """Where its samples come from: where the preset's do if those are kept, else fresh ones as in the paper."""
        wanted = objective(method)
        if self.run.training.intermediate_source in ("draws", "pool") and not wanted.on_policy:
            return {}
        from_base = {"base", "labelled"} & set(wanted.roles)
        return {"intermediate_source": "base" if from_base else "proposal"}


Presets = Mapping[str, Preset]
F = TypeVar("F", bound=Callable[..., Presets])


def experiment(name: str, *, gallery: Sequence[Mapping[str, Any]] = ({},)) -> Callable[[F], F]:
    """Decorator: register a function that returns an experiment's presets; its keywords are the options it takes.

    `gallery`: the options with which it is best looked at (examples/qualitative.ipynb).
    """
    return register("experiment", name, gallery=tuple(gallery))


def get_preset(name: str, preset: str, **options: Any) -> Preset:
    """A preset of a registered experiment.

    Raises:
        ConfigError: there is no such experiment or preset, or the experiment has no such option.
    """
    build = lookup("experiment", name).value
    known = list(inspect.signature(build).parameters)
    if unknown := sorted(options.keys() - set(known)):
        raise ConfigError(
            f"experiment {name!r} has no option {', '.join(unknown)}; it takes {', '.join(known) or 'none'}"
        )
    presets: Presets = build(**options)
    if preset not in presets:
        raise ConfigError(f"experiment {name!r} has no preset {preset!r}; choose one of: {', '.join(presets)}")
    return presets[preset]
