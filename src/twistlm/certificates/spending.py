"""What a certificate may cost, and on what it is spent."""

import math
from dataclasses import dataclass

from twistlm.certificates.bounds import METHODS, check_methods
from twistlm.core.errors import ConfigError
from twistlm.core.plain import make_plain, several
from twistlm.core.sizes import RUN_BYTES, TOKEN_BYTES, check_sizes

# Below this a search without a limit might not end.
LEAST_GAP = 1e-3


@dataclass(frozen=True)
class Effort:
    """How hard to try for a tight sandwich: N doubles until it is so tight, or too much has been spent.

    Attributes:
        gap: nats from the low end of the lower bound's interval to the high end of the upper one's.
        num_sequences: at most so many sequences in all.
        seconds: at most so long.

    Raises:
        ConfigError: a number is not positive.
    """

    gap: float
    num_sequences: float = math.inf
    seconds: float = math.inf

    def __post_init__(self) -> None:
        """Check the fields."""
        make_plain(self)
        for name in ("gap", "num_sequences", "seconds"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.gap < LEAST_GAP and math.isinf(self.num_sequences) and math.isinf(self.seconds):
            raise ConfigError(
                f"gap = {self.gap:g} may never be met: give max_sequences or max_seconds too, or at least {LEAST_GAP:g}"
            )


@dataclass(frozen=True)
class Spending:
    """What a certificate may cost, and on what it is spent.

    Attributes:
        num_particles: N of the sandwiches.
        num_samples: proposal samples for F and the IWAE bounds; where targets differ by a condition, so many conditions
            at most with one sample each.
        budget: sequences spent on each SMC bound at each N: budget / N runs, at least 2, at most one per exact sample.
            Where targets differ, at the largest N, whose conditions serve every N.
        methods: of the sandwiches. Those of "iwae" come from the samples that F and G need in any case, so without
            "smc" a certificate costs little more than the divergences.
        effort: double N from the smallest of `num_particles` on, with as many runs at each N as there, instead of
            taking them all. The bounds that are tight enough are made anew before they count: those that stopped the
            search were selected for being tight.

    Raises:
        ConfigError: a number is out of range, or there is no such method.
    """

    num_particles: tuple[int, ...] = (4, 16, 64)
    num_samples: int = 512
    budget: int = 512
    methods: tuple[str, ...] = METHODS
    effort: Effort | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        make_plain(self)
        object.__setattr__(self, "num_particles", several(self.num_particles))
        if not self.num_particles or min(self.num_particles) < 1:
            raise ConfigError(f"num_particles must be at least 1 each, not {list(self.num_particles)}")
        if not self.methods:
            raise ConfigError(f"methods must name at least one of {', '.join(METHODS)}")
        check_methods(self.methods)
        check_sizes(TOKEN_BYTES, num_samples=self.num_samples)
        check_sizes(RUN_BYTES, budget=self.budget)

    def runs(self, num_particles: int) -> int:
        """How many runs of SMC at so many particles."""
        return max(2, self.budget // num_particles)
