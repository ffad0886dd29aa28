"""What options may be, and those that several commands have: each declared once."""

import tempfile
from dataclasses import dataclass, fields
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Interval
from pydantic import AfterValidator
from tyro.conf import Positional, UseAppendAction, arg

from twistlm.core.errors import ConfigError, RunError, StorageError
from twistlm.core.remote import path_of, url_of

if TYPE_CHECKING:
    from twistlm.core.work import Engine
    from twistlm.runs.aim import Aim
    from twistlm.runs.experiments import Preset
    from twistlm.sampling.prompts import Prompts

# --- What values may be (`twistlm.cli.validation` holds them against this) -----------------------------------

# The largest whole number that anything stores.
MOST = 2**63 - 1
Count = Annotated[int, Interval(ge=1, le=MOST)]
Natural = Annotated[int, Interval(ge=0, le=MOST)]
Number = Annotated[float, Interval(gt=-inf, lt=inf)]
Positive = Annotated[float, Interval(gt=0, lt=inf)]
NotNegative = Annotated[float, Interval(ge=0, lt=inf)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
# As much as it takes, if infinite.
Limit = Annotated[float, Interval(gt=0)]


def _text(given: str) -> str:
    """Refuse what no tokenizer, file or terminal takes."""
    if not given:
        raise ConfigError("is empty; give a text")
    if "\0" in given or not _is_unicode(given):
        raise ConfigError(f"is not text, {given!r}: it has a zero byte or is not valid UTF-8")
    return given


def _path(given: Path) -> Path:
    if "\0" in str(given) or not _is_unicode(str(given)):
        raise ConfigError(f"is no path, {str(given)!r}: it has a zero byte or is not valid UTF-8")
    return given


def _local(given: Path) -> Path:
    if (url := url_of(given)) is not None:
        raise ConfigError(f"must be a path on this machine, not {url}; copy it here first")
    return path_of(given)


def _file(given: Path) -> Path:
    if not given.name or given.name == "..":
        raise ConfigError(f"must name a file, not {str(given)!r}")
    return given


def _is_unicode(text: str) -> bool:
    # Bytes of the command line that are not UTF-8 arrive as lone surrogates.
    return not any("\ud800" <= character <= "\udfff" for character in text)


Text = Annotated[str, AfterValidator(_text)]
# Paths, or URLs of what is in a store; `cli.places` opens those.
AnyPlace = Annotated[Path, AfterValidator(_path)]
FilePlace = Annotated[AnyPlace, AfterValidator(_file)]
AnyPath = Annotated[AnyPlace, AfterValidator(_local)]
FilePath = Annotated[AnyPath, AfterValidator(_file)]

# --- What several commands ask for ---------------------------------------------------------------------------

# What `--help` says of every place that is written.
OR_URL = "Or a URL: s3://bucket/run, gs://… (docs/stores.md)."
Out = Annotated[
    AnyPlace,
    arg(help=f"Run folder. An existing one is refused unless --resume or --overwrite is given. {OR_URL}"),
]
Seed = Annotated[
    Annotated[int, Interval(ge=-MOST, le=MOST)],
    arg(help="The same seed gives the same results bit for bit on the same machine."),
]
Verbose = Annotated[
    bool, arg(help="Print all of the certificates, and the bounds on log Z at every number of particles.")
]
RunPath = Annotated[Positional[AnyPlace], arg(help=f"A run folder that `train` or `demo` has finished. {OR_URL}")]
TrustFunction = Annotated[
    UseAppendAction[tuple[Text, ...]],
    arg(
        help="A function, as module:name, that a run's potential may import and run; none other is, and there is no "
        "word for all. May be repeated."
    ),
]
Plugins = Annotated[
    UseAppendAction[tuple[AnyPath, ...]],
    arg(help="A Python file to run first, for the parts that it registers (losses, potentials, twists, …)."),
]
ExperimentName = Annotated[Positional[Text], arg(help="An experiment; `twistlm list` shows them.")]
OwnExperimentName = Annotated[
    Positional[Text | None],
    arg(
        help="An experiment (`twistlm list`), of whose target --model, --prompts and so on replace a part; without one "
        "they are all of it, at twistlm's own settings."
    ),
]
PresetName = Annotated[Text, arg(help="Its size, with settings that suit it; `twistlm list` shows them.")]
DemoUnlessGiven = Annotated[
    Text | None, arg(help="The experiment's size, with settings that suit it (`twistlm list`); default: demo.")
]
SmallUnlessGiven = Annotated[
    Text | None, arg(help="The experiment's size, with settings that suit it (`twistlm list`); default: small.")
]


# Options that some experiments have.
EXPERIMENTS = ("num_tokens", "label", "beta", "threshold", "num_condition")

# --- Options that go together: the fields of a class are options of the command itself -------------------------


@dataclass(frozen=True)
class Group:
    """Options with a purpose in common; where one is None, or a flag False, it was not given."""

    @property
    def given(self) -> dict[str, Any]:
        """Those that were given on the command line, or have a default that is a value."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value is not None and value is not False}


@dataclass(frozen=True)
class OfTarget(Group):
    """What is sampled: parts of a target, in place of the experiment's own."""

    model: Annotated[Text | None, arg(help="Base model: `twistlm list model`, a folder or a hub name.")] = None
    potential: Annotated[
        Text | None,
        arg(
            help="φ as a whole, as NAME:key=value,…, e.g. jigsaw:label=insult,beta=2 or regex:pattern=dragon; "
            "`twistlm list potential` shows the names."
        ),
    ] = None
    classifier: Annotated[
        Text | None,
        arg(
            help="The model behind the experiment's classifier: bundled name, folder or hub name. All else of φ stays, "
            "the label too unless --label is given."
        ),
    ] = None
    label: Annotated[
        Text | None, arg(help="Label of --classifier; or the experiment's option: the class, e.g. '5 stars'.")
    ] = None
    logit_means: Annotated[
        Literal["label", "not label"] | None, arg(help="What a high logit of a --classifier with a single one means.")
    ] = None
    prompt: Annotated[Text | None, arg(help="The text that the model continues.")] = None
    prompts: Annotated[
        AnyPath | None,
        arg(
            help="A file of prompts, for all of which one twist is learned: .txt (a prompt a line), .jsonl or .csv "
            "(columns prompt or messages; name and weight if there are)."
        ),
    ] = None
    column: Annotated[Text | None, arg(help="Of --prompts: the column that holds them; default: prompt.")] = None
    chat: Annotated[
        bool, arg(help="Prompts are what a user says, and the model answers: by its tokenizer's chat template.")
    ] = False
    system: Annotated[Text | None, arg(help="The system's message of every chat.")] = None
    num_tokens: Annotated[Count | None, arg(help="New tokens.")] = None
    eos: Annotated[
        Literal["absorb", "ignore"] | None,
        arg(help="End a text at its end-of-text token, or draw on; default: the experiment's, without one: absorb."),
    ] = None
    beta: Annotated[Positive | None, arg(help="Experiment's option: power of the classifier's probability.")] = None
    threshold: Annotated[Number | None, arg(help="Experiment's option: what the score must exceed.")] = None
    num_condition: Annotated[Count | None, arg(help="Experiment's option: tokens that must follow (infilling).")] = None

    @property
    def options(self) -> dict[str, Any]:
        """Those of experiments that were given."""
        return {name: value for name, value in self.given.items() if name in EXPERIMENTS}

    def aim(self) -> "Aim":
        """What takes the place of the experiment's; the file of prompts has been read.

        Raises:
            ConfigError: options exclude each other.
            PromptError: the prompts are none; the message says which line.
        """
        from twistlm.runs.aim import Aim

        return Aim(
            self.model,
            self.potential,
            self.classifier,
            None if self.classifier is None else self.label,
            self.logit_means,
            self._prompts(),
            self.num_tokens,
            self.eos,
        )

    def preset(self, experiment: str | None, size: str | None, default: str) -> "Preset":
        """The target that is asked for, with settings that suit it.

        Raises:
            ConfigError: something is unknown, missing, or excludes something else.
            PromptError: the prompts are none.
        """
        from twistlm.runs.aim import aimed

        return aimed(experiment, size, default, self.options, self.aim())

    def _prompts(self) -> "Prompts | None":
        from twistlm.models.chats import chat
        from twistlm.sampling.prompts import Prompts

        if self.prompt is not None and self.prompts is not None:
            raise ConfigError("--prompt and --prompts exclude each other; choose one")
        if self.column is not None and self.prompts is None:
            raise ConfigError("--column is of a file of --prompts; give that too, or leave it out")
        if self.prompts is not None:
            return Prompts.read(self.prompts, self.column or "prompt", as_chat=self.chat, system=self.system)
        if self.prompt is None and (self.chat or self.system is not None):
            raise ConfigError("--chat and --system say how --prompt or --prompts are read; give one of these too")
        if self.prompt is None:
            return None
        if self.system is not None and not self.chat:
            raise ConfigError("--system is of a chat; give --chat too, or leave it out")
        return Prompts.of(chat(self.prompt, system=self.system) if self.chat else self.prompt)


@dataclass(frozen=True)
class OfSMC(Group):
    """How SMC samples with a run's twist."""

    proposal: Annotated[
        Text, arg(help="Distribution of the next token: twist_induced, base, or e.g. tempered:0.5.")
    ] = "twist_induced"
    resampler: Annotated[Text, arg(help="Scheme: systematic, stratified, residual or multinomial.")] = "systematic"
    ess_threshold: Annotated[
        Fraction | None,
        arg(
            help="Resample when ESS is at most this fraction of N: 0 never, 1 at every step. Default: half, and never "
            "with fewer than 16 particles by what training has fitted beside the twist."
        ),
    ] = None
    proposal_run: Annotated[
        AnyPlace | None, arg(help="Another run on the same base model, whose twist proposes while this one's weighs.")
    ] = None
    informed: Annotated[
        bool, arg(help="Let SMC weigh by what training has fitted beside the twist; --no-informed: by the twist alone.")
    ] = True

    def for_run(self, trust_functions: tuple[str, ...]) -> dict[str, Any]:
        """What `Run.sample` and `Run.evaluate` take: the other run is loaded, if one is named."""
        from twistlm.runs.run import Run

        # What is on unless it is switched off is said either way.
        given = self.given | {"informed": self.informed}
        if self.proposal_run is None:
            return given
        return given | {"proposal_run": Run.load(self.proposal_run, trust_functions=trust_functions, draws=False)}


@dataclass(frozen=True)
class OfEngine(Group):
    """Who does the work, in pieces that know nothing of each other. What comes out is the same, bit for bit."""

    engine: Annotated[
        Text, arg(help="local: processes of this machine; ray: the cluster at RAY_ADDRESS, or a Ray started here.")
    ] = "local"
    jobs: Annotated[
        Count | None,
        arg(help="So many pieces at a time. Default: one, in this process; with ray as many as there is room for."),
    ] = None

    def made(self) -> "Engine":
        """The engine.

        Raises:
            ConfigError: there is none of that name, or it does not take these options, or is not installed.
        """
        from twistlm.runs.engines import engine

        return engine(self.engine, jobs=self.jobs)


@dataclass(frozen=True)
class IfExists:
    """What to do where there are results already."""

    resume: bool = False
    overwrite: bool = False

    @property
    def policy(self) -> str:
        """ "refuse", "resume" or "overwrite".

        Raises:
            ConfigError: both were given.
        """
        if self.resume and self.overwrite:
            raise ConfigError("--resume and --overwrite exclude each other; choose one")
        return "resume" if self.resume else "overwrite" if self.overwrite else "refuse"


@dataclass(frozen=True)
class IfRunExists(IfExists):
    """What to do with a run folder."""

    resume: Annotated[bool, arg(help="Continue the run in the folder where it stopped, bit for bit.")] = False
    overwrite: Annotated[bool, arg(help="Replace the run in the folder, once the new one is done.")] = False


@dataclass(frozen=True)
class IfFileExists(IfExists):
    """What to do with a file of draws."""

    resume: Annotated[bool, arg(help="Add to the file if it exists.")] = False
    overwrite: Annotated[bool, arg(help="Replace the file if it exists.")] = False


TargetOptions = Annotated[OfTarget, arg(name="")]
SMCOptions = Annotated[OfSMC, arg(name="")]
EngineOptions = Annotated[OfEngine, arg(name="")]
RunExists = Annotated[IfRunExists, arg(name="")]
FileExists = Annotated[IfFileExists, arg(name="")]


# --- What is refused before anything is computed ---------------------------------------------------------------


def refuse_existing(out: Path | None) -> None:
    """Before anything is computed: a file of results is never replaced, and there must be a place for it.

    Raises:
        RunError: it exists.
        StorageError: the system would not let it be written.
    """
    if out is None:
        return
    if out.exists():
        raise RunError(f"{out} exists already; choose another --out, or delete it")
    check_writable(out)


def check_writable(path: Path) -> None:
    """Make sure, leaving nothing behind, that a file or folder can be written there.

    Raises:
        StorageError: something is in the way, or the system does not allow it.
    """
    if path.is_symlink() and not path.exists():
        raise StorageError(f"{path} is a link to what does not exist; choose another --out, or delete the link")
    place = next(parent for parent in path.absolute().parents if parent.exists() or parent.is_symlink())
    if not place.is_dir():
        raise StorageError(f"{place} is in the way of {path}: it is no folder; choose another --out")
    try:
        # Named as what is to be made there, so that a name that is too long is found out too.
        wanted = path.absolute().relative_to(place).parts[0]
        with tempfile.NamedTemporaryFile(dir=place, prefix=f".{wanted}."):
            pass
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror}); choose another --out") from error
