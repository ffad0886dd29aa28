"""What takes the place of parts of an experiment's target: its settings on a model, φ and prompts of one's own."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from twistlm.core.errors import ConfigError
from twistlm.core.identity import digest
from twistlm.core.registry import lookup
from twistlm.potentials import Classifier, named
from twistlm.potentials.protocol import Potential
from twistlm.runs.automatic import on_policy
from twistlm.runs.experiments import Preset, get_preset
from twistlm.runs.train import default_config
from twistlm.sampling.prompts import Prompts
from twistlm.sampling.target import Target


@dataclass(frozen=True)
class Aim:
    """Parts of a target; where one is None, the experiment's own stays.

    Attributes:
        model: the base model, by registered name, folder or hub name.
        potential: φ as a whole, as `twistlm.potentials.named` reads it.
        classifier: the model behind the classifier in φ, of which all else stays: its label and what its single logit
            means, unless `label` is given too; powers and thresholds always.
        label: of `classifier`.
        logit_means: of `classifier`, if it has a single logit.
        prompts: where it is sampled.
        num_tokens: T new tokens.
        eos: "absorb" ends a text at its end-of-text token, "ignore" draws on.

    Raises:
        ConfigError: two of them exclude each other, or one makes no sense without another.
    """

    model: str | None = None
    potential: str | None = None
    classifier: str | None = None
    label: str | None = None
    logit_means: Literal["label", "not label"] | None = None
    prompts: Prompts | None = None
    num_tokens: int | None = None
    eos: Literal["absorb", "ignore"] | None = None

    def __post_init__(self) -> None:
        """Check what goes together."""
        if self.potential is not None and self.classifier is not None:
            raise ConfigError("potential and classifier exclude each other; a potential replaces φ as a whole")
        if self.logit_means is not None and (self.classifier is None or self.label is None):
            raise ConfigError("logit_means is of a new classifier; give it with classifier and label, or leave it out")

    @property
    def described(self) -> dict[str, str | int]:
        """What is given, as a line can say it; prompts by their number and a hash of all that they are."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        if self.prompts is not None and len(self.prompts) > 1:
            given["prompts"] = f"{self.prompts} ({digest(self.prompts.spec())[:8]})"
        elif self.prompts is not None:
            given["prompts"] = str(self.prompts)
        return given

    def of(self, target: Target) -> Target:
        """A target with these parts in place of its own.

        Raises:
            ConfigError: there is no such potential, or φ has no classifier, or several.
        """
        changes = {name: getattr(self, name) for name in ("model", "prompts", "num_tokens", "eos")}
        if self.potential is not None:
            changes["potential"] = named(self.potential)
        if self.classifier is not None:
            changes["potential"] = self._reclassified(target.potential, self.classifier)
        given = {name: value for name, value in changes.items() if value is not None}
        return target.changed(**given) if given else target

    def target(self) -> Target:
        """The target that these parts are, where they are all there.

        Raises:
            ConfigError: one is missing, or there is no such potential.
        """
        missing = {
            "model": self.model is None,
            "potential (or classifier and label)": self.potential is None
            and (self.classifier is None or self.label is None),
            "prompt or prompts": self.prompts is None,
            "num_tokens": self.num_tokens is None,
        }
        if any(missing.values()):
            wanted = ", ".join(name for name, is_missing in missing.items() if is_missing)
            raise ConfigError(
                f"without an experiment (`twistlm list` shows them) the target needs {wanted}: give all of it, or name "
                "an experiment whose own is taken"
            )
        assert self.model is not None
        potential: Potential
        if self.potential is not None:
            potential = named(self.potential)
        else:
            assert self.classifier is not None
            assert self.label is not None
            potential = Classifier(self.classifier, self.label, logit_means=self.logit_means)
        return Target(self.model, potential, prompts=self.prompts, num_tokens=self.num_tokens, eos=self.eos or "absorb")

    def _reclassified(self, potential: Potential, model: str) -> Potential:
        """φ with another model behind its classifier."""
        found: list[Classifier] = []

        def change(classifier: Classifier) -> Classifier:
            found.append(classifier)
            if self.label is None:
                return replace(classifier, model=model)
            return replace(classifier, model=model, label=self.label, logit_means=self.logit_means)

        made: Potential = _rebuilt(potential, change)
        if len(found) != 1:
            raise ConfigError(
                f"φ of this experiment has {len(found) or 'no'} classifier{'s' if found else ''}, and one is to be "
                f"replaced: give the whole φ, as potential = 'classifier:model={model},label=…'"
            )
        return made


def aimed(experiment: str | None, preset: str | None, default: str, options: Mapping[str, Any], aim: Aim) -> Preset:
    """An experiment's preset on the target that is asked for; without an experiment the defaults of `twistlm.train`.

    Args:
        experiment: a registered one.
        preset: its size; None for `default`.
        default: the size where none is given.
        options: the experiment's. What the aim has too goes to it alone where the experiment takes no such option.
        aim: what takes the place of its target's parts.

    Raises:
        ConfigError: experiment, preset or option is unknown, or the aim does not fit or is incomplete.
    """
    own = {name: value for name, value in options.items() if name not in aim.described}
    if experiment is None:
        if stray := [*(["preset"] if preset is not None else []), *own]:
            raise ConfigError(f"{', '.join(stray)}: options of an experiment; name one, or leave them out")
        target = aim.target()
        return Preset("a target of its own", lambda: target, default_config(target), on_policy())
    known = inspect.signature(lookup("experiment", experiment).value).parameters
    if aim.potential is not None and own:
        raise ConfigError(f"{', '.join(own)}: options of the experiment's φ, which potential replaces; give either")
    taken = {name: value for name, value in options.items() if name in known or name in own}
    chosen = get_preset(experiment, default if preset is None else preset, **taken)
    return replace(chosen, target=lambda: aim.of(chosen.target()))


def _rebuilt(potential: Any, change: Callable[[Classifier], Classifier]) -> Any:
    """The same potential with every classifier among its parts changed."""
    if isinstance(potential, Classifier):
        return change(potential)
    if isinstance(potential, tuple):
        return tuple(_rebuilt(part, change) for part in potential)
    if not isinstance(potential, Potential) or not dataclasses.is_dataclass(potential):
        return potential
    parts = {
        each.name: getattr(potential, each.name)
        for each in dataclasses.fields(potential)
        if each.init and isinstance(getattr(potential, each.name), tuple | Potential)
    }
    changed = {name: _rebuilt(part, change) for name, part in parts.items()}
    return replace(potential, **changed) if changed else potential
