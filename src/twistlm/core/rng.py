"""The only source of randomness.

Every random decision of the package passes through `Rng.uniform` or `Rng.categorical`, so a test can swap in
`twistlm.testing.ExhaustiveRng` and turn an expectation into a finite sum.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from twistlm.core.kernels.categorical import CategoricalTable
from twistlm.core.plain import plain


class Rng:
    """A reproducible stream of random numbers that can be split by name.

    `fork` derives an independent stream from the seed and the path of names alone, not from what has been drawn.
    A loop that forks by its own counter therefore resumes bit for bit from that counter, with no state to save.
    """

    def __init__(self, seed: int, path: tuple[str | int, ...] = ()) -> None:
        # A number of numpy's is written otherwise.
        self.seed, self.path = plain(seed), path
        digest = hashlib.sha256(repr((self.seed, *path)).encode()).digest()
        self._number = int.from_bytes(digest[:8], "big") >> 1
        self._generator = torch.Generator().manual_seed(self._number)

    def __reduce__(self) -> tuple[type["Rng"], tuple[int, tuple[str | int, ...]]]:
        """Sent to another process it is at its start there, as `fork` gives it."""
        return Rng, (self.seed, self.path)

    def fork(self, *names: str | int) -> "Rng":
        """The stream that belongs to `names` below this one; the same every time it is asked for."""
        return Rng(self.seed, (*self.path, *names))

    @property
    def state(self) -> Tensor:
        """How far it has been drawn from."""
        return self._generator.get_state()

    def rewind(self, state: Tensor) -> None:
        """Go back to an earlier `state`."""
        self._generator.set_state(state)

    @contextmanager
    def initialising(self) -> Iterator[None]:
        """Let torch initialise modules from this stream; its global generator is as before afterwards."""
        with torch.random.fork_rng():
            torch.manual_seed(self._number)
            yield

    def uniform(self, shape: Sequence[int], breaks: Tensor | None = None) -> Tensor:
        """Independent uniforms on [0, 1), float64, of shape [R, n].

        Args:
            shape: the shape, [R, n].
            breaks: points [R, k] between which the caller's result does not change. Ignored here; an exhaustive
                Rng integrates over the intervals that they cut.
        """
        return torch.rand(tuple(shape), generator=self._generator, dtype=torch.float64)

    def categorical(self, table: CategoricalTable, rows: Tensor) -> Tensor:
        """One outcome [B] from each of the table's distributions `rows` [B]."""
        uniforms = self.uniform((rows.shape[0], 1)).squeeze(-1).to(rows.device)
        return table.invert(uniforms, rows)
