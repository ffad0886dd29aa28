"""Every error that twistlm raises on purpose.

The command line prints the message of a `TwistError` as one line and exits with its code; anything else is
a bug and keeps its traceback. A message names the field, the value and the remedy.
"""

from typing import Any


class TwistError(Exception):
    """Base of all deliberate errors."""

    exit_code = 2
    """What the command line ends with: 2 for what the user can put right in the command."""


class ConfigError(TwistError, ValueError):
    """A setting is unknown or out of range."""


class PromptError(TwistError, ValueError):
    """A prompt is empty, or too long for the model's context together with the new tokens."""


class PotentialError(TwistError, ValueError):
    """A potential raised, or returned NaN, +inf or the wrong shape."""


class DeadParticlesError(TwistError, ArithmeticError):
    """Every particle of a run has weight zero, so no sample and no finite estimate exists."""


class UpperBoundError(TwistError, ValueError):
    """A potential's upper bound is needed (rejection sampling, FUDGE) and is unknown or violated."""


class ExactSamplesError(TwistError, ValueError):
    """Exact target samples are missing, too few, or belong to another target."""


class NoneAcceptedError(ExactSamplesError):
    """Rejection sampling accepted nothing within its budget; `collection` has what was drawn."""

    def __init__(self, message: str, collection: Any = None) -> None:
        super().__init__(message)
        self.collection = collection


class ResamplingError(TwistError, ValueError):
    """A resampling scheme has no conditional form and cannot keep a retained particle."""


class ModelError(TwistError, ValueError):
    """A model, tokenizer or packaged weight cannot be found or is not supported."""


class RunError(TwistError, ValueError):
    """A run folder exists already, is incomplete, corrupt, or from another version."""


class DamagedError(RunError):
    """A file that is not what it should be.

    Attributes:
        found: in what way.
        remedy: what to do.
    """

    def __init__(self, found: str, remedy: str = "restore it or start over with --overwrite") -> None:
        super().__init__(f"{found}; {remedy}")
        self.found, self.remedy = found, remedy

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """What is sent to other processes: the message is no argument."""
        return DamagedError, (self.found, self.remedy)


class TrainingError(TwistError, ArithmeticError):
    """Training cannot go on: the loss is not finite or no sample carries weight."""


class StorageError(TwistError, OSError):
    """The system refuses to read or write: disk full, no permission, a file in the way."""

    exit_code = 1


class LeaseLostError(StorageError):
    """Somebody else has taken over what this process was writing, which it had not been heard of for too long."""


class ProcessError(TwistError, RuntimeError):
    """Another of the processes that do one piece of work has ended."""

    exit_code = 1


class InstallationError(TwistError, RuntimeError):
    """Something that twistlm needs is missing here, or broken."""

    exit_code = 1
