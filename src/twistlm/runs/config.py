"""Everything that makes a run what it is, beside its target."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from twistlm.core.errors import ConfigError
from twistlm.core.plain import make_plain, several
from twistlm.core.plugins import hashes
from twistlm.core.registry import lookup
from twistlm.core.rng import Rng
from twistlm.core.storage import STRICT
from twistlm.potentials.specs import names_in
from twistlm.training.config import TrainingConfig, training_sources

# Settings of a run itself that options override.
OWN = ("num_draws", "held_out_prompts", "seed")
# Of fewer prompts none can be spared.
FEWEST_TO_HOLD_OUT = 10
# Of these settings None is a value; it leaves any other as it is.
NONE_IS_A_VALUE = ("patience", "decay_after")
FOLDS = ("training", "held_out", "evaluation")


@dataclass(frozen=True)
class EvaluationConfig:
    """How a run is certified.

    Attributes:
        num_particles: N of the sandwiches.
        num_samples: proposal samples for KL(q‖σ).
        budget: sequences spent on each bound at each N (at the largest, where targets differ by condition).
        during_training: certify after 0, 1, 2, 4, 8, … updates as well, for curves: by IWAE, a quarter of the budget.
    """

    __pydantic_config__ = STRICT

    num_particles: tuple[int, ...] = (4, 16, 64)
    num_samples: int = 512
    budget: int = 512
    during_training: bool = False

    def __post_init__(self) -> None:
        """Make the numbers Python's; one number of particles is several."""
        make_plain(self)
        object.__setattr__(self, "num_particles", several(self.num_particles))


@dataclass(frozen=True)
class RunConfig:
    """Everything that makes a run what it is, beside its target.

    Attributes:
        twist: a registered twist.
        twist_options: its arguments.
        training: loss, sources, optimiser.
        num_draws: base draws to collect first: training data, of which those accepted are exact samples. 0 for none.
        num_exact: stop collecting once so many are accepted; None draws them all.
        folds: shares of the draws for training, for the held-out criterion and for evaluation.
        held_out_prompts: of a set of ten prompts or more, the share that training does not see: all of their draws but
            those for evaluation make up the held-out criterion.
        max_held_out: so many draws, chosen by φ, make up the held-out criterion.
        num_siblings: further draws of every token, kept for training.
        chunk: base draws at a time.
        evaluation: how it is certified.
        seed: of everything random.
    """

    __pydantic_config__ = STRICT

    twist: str = "low_rank"
    twist_options: Mapping[str, Any] = field(default_factory=dict)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    num_draws: int = 2048
    num_exact: int | None = None
    folds: tuple[float, float, float] = (0.5, 0.15, 0.35)
    held_out_prompts: float = 0.2
    max_held_out: int = 128
    num_siblings: int = 16
    chunk: int = 512
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: a number is out of range.
        """
        make_plain(self)
        if self.num_draws < 0 or self.num_siblings < 0:
            raise ConfigError(
                f"num_draws and num_siblings must not be negative, not {self.num_draws} and {self.num_siblings}"
            )
        if len(self.folds) != len(FOLDS) or min(self.folds) <= 0 or sum(self.folds) > 1 + 1e-9:
            raise ConfigError(f"folds must be {len(FOLDS)} positive shares of at most 1 in all, not {self.folds}")
        if not 0 <= self.held_out_prompts < 1:
            raise ConfigError(f"held_out_prompts must be at least 0 and below 1, not {self.held_out_prompts}")
        if 0 < self.num_draws < 8:
            raise ConfigError(f"num_draws must be 0 or at least 8, so that every fold has some, not {self.num_draws}")

    def held_out(self, num_prompts: int) -> set[int]:
        """Which of a set of prompts training does not see; none of fewer than `FEWEST_TO_HOLD_OUT`."""
        if num_prompts < FEWEST_TO_HOLD_OUT:
            return set()
        order = Rng(self.seed, ("held-out prompts",)).uniform((1, num_prompts))[0].argsort()
        return set(order[: round(self.held_out_prompts * num_prompts)].tolist())

    @property
    def trains_on_draws(self) -> bool:
        """Whether the collected draws are training data too, so that their features are worth keeping."""
        return self.training.draws_from("draws", "exact")

    def plugins(self, target: Mapping[str, Any] | None) -> dict[str, str]:
        """What tells parts of others, named here or in a target's description, from their later versions.

        Nothing where all are twistlm's own.
        """
        named = {f"twist {self.twist}": lookup("twist", self.twist).value, **self.training.parts}
        if target is not None:
            named |= {f"potential {name}": lookup("potential", name).value for name in names_in(target["potential"])}
        return hashes(named.items())

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return dataclasses.asdict(self)

    def changed(
        self,
        *,
        method: str | None = None,
        twist: str | None = None,
        twist_options: Mapping[str, Any] | None = None,
        source: str | None = None,
        evaluation: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> "RunConfig":
        """The same with other values of some settings: the one way by which options override a preset.

        Args:
            method: the loss.
            twist: its kind; the options of another kind do not go with it.
            twist_options: its arguments.
            source: of the target's samples, and of those of the loss's other roles that it can serve.
            evaluation: fields of `EvaluationConfig`.
            **settings: fields of `TrainingConfig`; or num_draws, held_out_prompts or seed of the run. Here and above
                None leaves a setting as it is, but for `patience` and `decay_after`, where it is a value.

        Raises:
            ConfigError: a setting is unknown or out of range.
        """
        changes = {k: v for k, v in settings.items() if v is not None or k in NONE_IS_A_VALUE}
        own = {name: changes.pop(name) for name in OWN if name in changes}
        if method is not None:
            changes["loss"] = method
        if source is not None:
            changes = training_sources(source, changes.get("loss", self.training.loss)) | changes
        known = [field.name for field in dataclasses.fields(TrainingConfig)]
        if unknown := sorted(changes.keys() - set(known)):
            raise ConfigError(f"unknown setting {', '.join(unknown)}; training takes {', '.join((*OWN, *known))}")
        twist = self.twist if twist is None else twist
        lookup("twist", twist)
        if twist_options is None:
            twist_options = self.twist_options if twist == self.twist else {}
        return dataclasses.replace(
            self,
            twist=twist,
            twist_options=twist_options,
            training=dataclasses.replace(self.training, **changes),
            evaluation=dataclasses.replace(self.evaluation, **(evaluation or {})),
            **own,
        )
