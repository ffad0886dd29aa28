"""Where draws came from: what tells them from others also when they are no longer there."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from twistlm.core.errors import DamagedError
from twistlm.core.storage import STRICT, as_type
from twistlm.sampling.exact.collection import Collection
from twistlm.sampling.exact.file import Stream


@dataclass(frozen=True)
class _Part:
    """Some draws of a stream, as JSON: from each first number up to, without it, the last."""

    __pydantic_config__ = STRICT

    stream: Stream
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Origins:
    """Which draws of which streams of random numbers.

    Attributes:
        numbers: for each stream, which of its draws.
    """

    numbers: Mapping[Stream, frozenset[int]] = field(default_factory=dict)

    @staticmethod
    def of(collections: Iterable[Collection]) -> "Origins":
        """Those of all draws in some collections."""
        found: dict[Stream, set[int]] = {}
        for each in collections:
            counts = torch.tensor([stream.count for stream in each.streams])
            ends = counts.cumsum(0)
            at = torch.arange(len(each.draws)) if each.positions is None else each.positions
            parts = torch.searchsorted(ends, at, right=True)
            numbers = at - (ends - counts)[parts]
            for part, number in zip(parts.tolist(), numbers.tolist(), strict=True):
                found.setdefault(each.streams[part], set()).add(number)
        return Origins({stream: frozenset(numbers) for stream, numbers in found.items()})

    def __or__(self, other: "Origins") -> "Origins":
        """These and the others."""
        streams = self.numbers.keys() | other.numbers.keys()
        return Origins({each: self._of(each) | other._of(each) for each in streams})

    @property
    def names(self) -> set[tuple[int, tuple[str | int, ...]]]:
        """Of the streams."""
        return {stream.name for stream in self.numbers}

    def num_common(self, others: "Origins") -> int:
        """How many of the draws come from where some of the others do."""
        known = others.names
        # Of a stream that was drawn so many at a time here and otherwise there, no draw is apart from the others.
        return sum(
            len(numbers & others.numbers.get(stream, numbers))
            for stream, numbers in self.numbers.items()
            if stream.name in known
        )

    def as_list(self) -> list[dict[str, Any]]:
        """JSON values."""
        return [asdict(_Part(stream, _ranges(sorted(numbers)))) for stream, numbers in self.numbers.items()]

    @staticmethod
    def from_list(values: Any, where: str) -> "Origins":
        """What `as_list` gave.

        Raises:
            DamagedError: they are something else; the message names `where`.
        """
        parts = as_type(tuple[_Part, ...], values, where)
        for stream, (start, end) in ((part.stream, each) for part in parts for each in part.ranges):
            if not 0 <= start < end <= stream.count:
                raise DamagedError(f"{where} is damaged: draws {start} to {end} of a stream of {stream.count}")
        return Origins({part.stream: frozenset(n for r in part.ranges for n in range(*r)) for part in parts})

    def _of(self, stream: Stream) -> frozenset[int]:
        return self.numbers.get(stream, frozenset())


def _ranges(numbers: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Ascending numbers as ranges, each up to and without its end."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number:
            found[-1] = (found[-1][0], number + 1)
        else:
            found.append((number, number + 1))
    return tuple(found)
