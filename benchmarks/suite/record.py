"""The rows and curves that were measured, and the file that keeps them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from twistlm.core.storage import save_json

FORMAT = 3


@dataclass(frozen=True)
class Row:
    """One figure in one precision.

    Attributes:
        name: task and batch, unique within kind, model and dtype.
        model: whose.
        dtype: precision of the model.
        kind: "time" (`ratio` is that of medians to `generate`'s), "scaling" (`ratio` is that of two of our own
            times), "update" (to the time of sampling the update's sequences), "memory" (`peak_mb` counts) or "growth"
            (`peak_mb` does, and is how much memory grew).
        ratio: see `kind`; of a row of memory, to `generate`'s peak at the same size.
        limit: upper limit of `ratio`, or of `peak_mb` in rows of memory and growth; None if there is none.
        median_s: median seconds.
        peak_mb: highest resident memory above the base model's weights, in a process of its own.
        task: what was measured.
        particles: N.
        steps: T.
        runs_s: seconds of every run.
        ess: mean effective sample size over N.
        twist_mb: parameters of the twist, which `peak_mb` includes.
        limit_s: seconds that its matrix products alone would take at the measured rate (`arithmetic`).
    """

    name: str
    model: str
    dtype: str
    kind: str
    ratio: float | None
    limit: float | None
    median_s: float | None
    peak_mb: float | None
    task: str
    particles: int
    steps: int
    runs_s: tuple[float, ...] = ()
    ess: float | None = None
    twist_mb: float | None = None
    limit_s: float | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """What a newer measurement of the same thing has in common with it."""
        return self.kind, self.model, self.dtype, self.name

    @property
    def measured(self) -> float | None:
        """What `limit` limits."""
        return self.peak_mb if self.kind in ("memory", "growth") else self.ratio

    @property
    def times_limit(self) -> float | None:
        """The median time over `limit_s`."""
        return None if self.median_s is None or not self.limit_s else self.median_s / self.limit_s

    @property
    def passed(self) -> bool:
        """Whether it keeps its limit, if it has one."""
        return self.limit is None or (self.measured is not None and self.measured <= self.limit)


@dataclass(frozen=True)
class Curve:
    """Series over one variable.

    Attributes:
        name: time_n, time_t, time_v or memory_n.
        model, dtype: whose.
        x: values of the variable.
        series: by task, one value (seconds or MB) for each x; None where it was not measured.
        fixed: the batch's other numbers, in words.
    """

    name: str
    model: str
    dtype: str
    x: tuple[int, ...]
    series: Mapping[str, tuple[float | None, ...]]
    fixed: str

    @property
    def key(self) -> tuple[str, ...]:
        """What a newer measurement of the same thing has in common with it."""
        return self.name, self.model, self.dtype


@dataclass
class Record:
    """Everything that is kept.

    Attributes:
        machines: what `machine.describe` said, by model: the figures of a model are all of one machine.
        quick: tiny sizes, which mean nothing.
        rows: in the order in which they first came.
        curves: likewise.
        load: by case, the machine's load averages before and after, and when it ended.
    """

    machines: dict[str, dict[str, Any]]
    quick: bool
    rows: dict[tuple[str, ...], Row] = field(default_factory=dict)
    curves: dict[tuple[str, ...], Curve] = field(default_factory=dict)
    load: dict[str, Any] = field(default_factory=dict)

    def put(self, *found: Row | Curve) -> None:
        """Add, or replace what is there already."""
        for each in found:
            if isinstance(each, Row):
                self.rows[each.key] = each
            else:
                self.curves[each.key] = each

    def forget(self, model: str) -> None:
        """Drop what is known of a model ("small" is gpt2's)."""
        names = {model, "small"} if model == "gpt2" else {model}
        self.rows = {key: row for key, row in self.rows.items() if row.model not in names}
        self.curves = {key: curve for key, curve in self.curves.items() if curve.model not in names}
        self.load = {case: load for case, load in self.load.items() if case.split()[0] not in names}

    def put_load(self, case: str, before: tuple[float, ...], after: tuple[float, ...]) -> None:
        """Note how busy the machine was."""
        self.load[case] = {
            "before": [round(value, 2) for value in before],
            "after": [round(value, 2) for value in after],
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def with_peaks(self) -> list[Row]:
        """The rows; those of time with the peak that the same task had in a process of its own, if that is known."""
        peaks = {(*row.key[1:3], row.name): row.peak_mb for row in self.rows.values() if row.kind == "memory"}
        return [
            row if row.kind != "time" else Row(**{**row.__dict__, "peak_mb": peaks.get((*row.key[1:3], row.name))})
            for row in self.rows.values()
        ]

    def save(self, path: Path) -> None:
        """Write the file."""
        fields = {
            "format": FORMAT,
            "quick": self.quick,
            "machines": self.machines,
            "load_average": self.load,
            "rows": [asdict(row) for row in self.with_peaks()],
            "curves": [asdict(curve) for curve in self.curves.values()],
        }
        save_json(path, _rounded(fields))


def load(path: Path) -> Record | None:
    """The record at `path`; None if there is none, or one of another format."""
    try:
        fields = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    if fields.get("format") != FORMAT:
        return None
    record = Record(fields["machines"], fields["quick"], load=fields["load_average"])
    record.put(*(Row(**{**row, "runs_s": tuple(row["runs_s"])}) for row in fields["rows"]))
    for curve in fields["curves"]:
        series = {name: tuple(values) for name, values in curve["series"].items()}
        record.put(Curve(**{**curve, "x": tuple(curve["x"]), "series": series}))
    return record


def _rounded(value: Any) -> Any:
    """Four significant digits are more than the clock is good for."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value
