"""What requests may ask for. It loads nothing else: the command line reads the defaults from here."""

from dataclasses import dataclass

from twistlm.core.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and how much may wait.

    Attributes:
        num_particles: N where a request does not say.
        most_particles: N at most.
        most_samples: sequences of a request at most, over all of its prompts.
        most_drawn: tokens of all particles of a request at most: sequences × particles × tokens of a text.
        most_waiting: requests that wait at most.
        most_bytes: of a request's body.
        timeout: seconds until a request that is read, waits or is answered is given up.
    """

    num_particles: int = 32
    most_particles: int = 1024
    most_samples: int = 128
    most_drawn: int = 1_000_000
    most_waiting: int = 256
    most_bytes: int = 1_000_000
    timeout: float = 120.0

    def __post_init__(self) -> None:
        """Check that the default is allowed."""
        if self.num_particles > self.most_particles:
            raise ConfigError(
                f"num_particles is {self.num_particles} and most_particles {self.most_particles}; raise the latter"
            )
