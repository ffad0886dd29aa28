"""What to measure, and at which sizes."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results.json"
PAGE = ROOT / "docs" / "benchmarks.md"

GROUPS = {
    "sampling": "base sampling and SMC with every twist, 100 × 20",
    "training": "training updates, 100 × 20",
    "resampling": "resampling at every step against never",
    "long": "SMC, 32 × 200",
    "large": "SMC, 1,000 × 20",
    "methods": "updates of every method against sampling their sequences, 100 × 20, on the bundled model",
    "prompts": "64 chats of 8 particles each, also with a long system prompt; different lengths against equal ones",
    "certificate": "a certificate with four runs of IWAE and SMC at N = 500",
    "memory": "memory above weights, one process per row",
    "updates": "memory over 500 updates",
    "length": "time per token up to 1,000 tokens, with and without attention",
    "curves": "time against N and V, memory against N",
}
# The groups that measure a model.
OF_MODEL = {
    "gpt2": tuple(group for group in GROUPS if group not in ("methods", "prompts")),
    "smollm2": ("sampling", "training", "memory"),
    "stories": ("methods", "memory"),
    # SmolLM2 again, with figures and a machine of their own.
    "chats": ("prompts",),
}
MODELS = tuple(OF_MODEL)
DTYPES = ("fp32", "bf16")


@dataclass(frozen=True)
class Options:
    """What to measure. Everything that is measured replaces its predecessor in the results and leaves the rest alone.

    Attributes:
        only: groups, separated by spaces or commas; all of them if none is named.
        models: gpt2 (random weights), smollm2, stories (the bundled one), chats (SmolLM2 on many prompts); curves and
            lengths are the first's alone.
        dtypes: precisions; curves and lengths are in the first of them.
        repeats: timed runs of each task (2 in a quick run).
        quick: tiny models and few tokens: shows in seconds that everything runs, and is written nowhere by itself.
        check: exit with an error if a row is above its limit.
        redraw: measure nothing; write the page from the results that are there.
        output: where the results go, with pictures beside them; by default benchmarks/results.json and the tables of
            docs/benchmarks.md, whose pictures the site draws from it.
    """

    only: tuple[str, ...] = ()
    models: tuple[str, ...] = MODELS
    dtypes: tuple[str, ...] = DTYPES
    repeats: int = 5
    quick: bool = False
    check: bool = False
    redraw: bool = False
    output: Path | None = None

    def __post_init__(self) -> None:
        """Refuse names that mean nothing, which would otherwise measure nothing."""
        for given, known in ((self.groups, GROUPS), (self.models, MODELS), (self.dtypes, DTYPES)):
            for name in given:
                if name not in known:
                    raise ValueError(f"{name!r} is none of {', '.join(known)}")

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that `only` chooses."""
        return tuple(name for part in self.only for name in part.split(",") if name) or tuple(GROUPS)

    @property
    def measured(self) -> tuple[str, ...]:
        """The models of which anything is measured."""
        return tuple(model for model in self.models if set(OF_MODEL[model]) & set(self.groups))

    @property
    def sizes(self) -> "Sizes":
        """The sizes that belong to `quick`."""
        return QUICK if self.quick else FULL

    @property
    def rounds(self) -> int:
        """Timed runs of each task."""
        return min(2, self.repeats) if self.quick else self.repeats

    @property
    def place(self) -> Path | None:
        """The file of results, None for nowhere."""
        return self.output or (None if self.quick else RESULTS)


@dataclass(frozen=True)
class Batch:
    """N sequences of T new tokens."""

    particles: int
    steps: int

    def __str__(self) -> str:
        return f"{self.particles}x{self.steps}"


@dataclass(frozen=True)
class Sizes:
    """Every size that is measured.

    Attributes:
        short, long, large, certificate: batches of the rows.
        updates: batch and number of the updates over which memory must stay flat, on a small model.
        particles: N of the curves, at `short.steps` tokens.
        lengths: T of the curves, at `length_particles` sequences.
        length_particles: see there.
        vocabularies: V of the curves, at `short`.
        prompts: batch of each prompt, and how many prompts.
        prompt_rounds: timed runs with them; prompts of different lengths are timed as often as other tasks.
        rounds: timed runs of each point of a curve; points of more than `one_round` tokens are timed once.
        one_round: see there.
    """

    short: Batch = Batch(100, 20)
    long: Batch = Batch(32, 200)
    large: Batch = Batch(1000, 20)
    certificate: Batch = Batch(500, 20)
    updates: tuple[Batch, int] = (Batch(16, 8), 500)
    particles: tuple[int, ...] = (10, 30, 100, 300, 1000)
    lengths: tuple[int, ...] = (10, 20, 50, 100, 200, 400, 800, 1000)
    length_particles: int = 16
    vocabularies: tuple[int, ...] = (1_000, 3_000, 10_000, 30_000, 50_257, 100_000)
    prompts: tuple[Batch, int] = (Batch(8, 32), 64)
    prompt_rounds: int = 1
    rounds: int = 3
    one_round: int = 2_000


FULL = Sizes()
QUICK = Sizes(
    short=Batch(6, 4),
    long=Batch(4, 8),
    large=Batch(8, 4),
    certificate=Batch(8, 4),
    updates=(Batch(4, 3), 55),
    particles=(4, 6),
    lengths=(2, 4),
    length_particles=4,
    vocabularies=(100, 200),
    prompts=(Batch(3, 4), 8),
    rounds=1,
)
