"""Pictures of benchmarks.md, which calls this: curves of `make bench`, from benchmarks/results.json."""

from pathlib import Path

from benchmarks.suite.plots import draw
from benchmarks.suite.record import load


def bench(name: str, *, per_token: bool = False) -> None:
    """A curve of `make bench`."""
    record = load(Path("..", "benchmarks", "results.json"))
    assert record is not None
    (curve,) = (each for each in record.curves.values() if each.name == name and each.dtype == "fp32")
    draw(curve, per_token=per_token)
