"""What several commands ask for, declared once."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from twistlm.errors import ConfigError, RunError

Out = Annotated[Path, arg(help="Run folder. An existing one is refused unless --resume or --overwrite is given.")]
Resume = Annotated[bool, arg(help="Continue the run in the folder where it stopped, bit for bit.")]
Overwrite = Annotated[bool, arg(help="Delete the run in the folder and start again.")]
Seed = Annotated[int, arg(help="The same seed gives the same results bit for bit on the same machine.")]
RunPath = Annotated[Positional[Path], arg(help="A run folder that `train` or `demo` has finished.")]
TrustFunction = Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(help="A function, as module:name, that a run's potential may import and run; none other is. May be repeated."),
]
SweepPaths = Annotated[Positional[tuple[Path, ...]], arg(help="Folders of `twistlm sweep`, finished or not.")]
ExperimentName = Annotated[Positional[str], arg(help="An experiment; `twistlm list` shows them.")]
PresetName = Annotated[str, arg(help="Its size, with settings that suit it; `twistlm list` shows them.")]
ProposalName = Annotated[str, arg(help="Distribution of the next token: twist_induced, base, or e.g. tempered:0.5.")]
ProposalRun = Annotated[
    Path | None, arg(help="Another run on the same base model, whose twist proposes while this one's weighs.")
]
ResamplerName = Annotated[str, arg(help="Scheme: systematic, stratified, residual or multinomial.")]
Threshold = Annotated[float, arg(help="Resample when ESS is at most this fraction of N: 0 never, 1 at every step.")]


@dataclass(frozen=True)
class OfExperiment:
    """Options of experiments; each takes some of them."""

    beta: Annotated[float | None, arg(help="Experiment's option: power of the classifier's probability.")] = None
    num_tokens: Annotated[int | None, arg(help="Experiment's option: new tokens.")] = None
    num_condition: Annotated[int | None, arg(help="Experiment's option: tokens that must follow (infilling).")] = None
    label: Annotated[str | None, arg(help="Experiment's option: the class, e.g. '5 stars'.")] = None
    threshold: Annotated[float | None, arg(help="Experiment's option: what the score must exceed.")] = None

    @property
    def given(self) -> dict[str, Any]:
        """Those that were given on the command line."""
        return given(**{field.name: getattr(self, field.name) for field in fields(self)})


# Its fields are options of the command itself.
ExperimentOptions = Annotated[OfExperiment, arg(name="")]
NONE_GIVEN = OfExperiment()


def given(**options: Any) -> dict[str, Any]:
    """The options that were given on the command line."""
    return {name: value for name, value in options.items() if value is not None}


def if_exists(resume: bool, overwrite: bool) -> str:
    """The policy for a folder that exists.

    Raises:
        ConfigError: both were given.
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other; choose one")
    return "resume" if resume else "overwrite" if overwrite else "refuse"


def refuse_existing(out: Path | None) -> None:
    """Before anything is computed: a file of results is never replaced.

    Raises:
        RunError: it exists.
    """
    if out is not None and out.exists():
        raise RunError(f"{out} exists already; choose another --out, or delete it")


def some(sweeps: tuple[Path, ...]) -> tuple[Path, ...]:
    """The folders of sweeps.

    Raises:
        ConfigError: there are none.
    """
    if not sweeps:
        raise ConfigError("name at least one folder of `twistlm sweep`")
    return sweeps
