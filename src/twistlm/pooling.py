"""What a sweep found, pooled over its methods and seeds.

All runs of a sweep have one target, so they share one log Z: the median over all methods and seeds of the midpoint of
each run's main sandwich (Zhao et al. 2024, section 7.1). With it KL(q‖σ) = log Z − F and KL(σ‖q) = G − log Z, whose
scatter over seeds is then that of F and G alone; they share the exact samples too, whose own error is not in it. Where
the target differs by condition, log Z is the mean over the conditions that F and G are means over, bounded by the best
run with more particles (the paper's rule for infilling); until that is there, each certificate's paired divergences
stand as they are.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from twistlm.bounds import best_log_Z, main_bounds
from twistlm.certificate import Certificate
from twistlm.errors import RunError
from twistlm.estimates import Estimate, student
from twistlm.evaluations import Evaluation, during
from twistlm.storage import load_json
from twistlm.sweeps import Cell, SweepFolder


@dataclass(frozen=True)
class Result:
    """One finished run.

    Attributes:
        cell: its method and seed.
        certificates: "after" training; "every_step", which resamples so; "before", the base model's, if asked for.
        during: certificates during training, by number of updates.
        seconds: spent on updates.
    """

    cell: Cell
    certificates: Mapping[str, Certificate]
    during: Mapping[int, Certificate]
    seconds: float

    @property
    def after(self) -> Certificate:
        """The certificate that counts."""
        return self.certificates["after"]


@dataclass(frozen=True)
class Row:
    """A method's results over its seeds, each with Student's interval; None where exact samples are wanting.

    Attributes:
        method: its loss.
        kl_q_target: KL(q‖σ).
        kl_target_q: KL(σ‖q).
        log_phi: E_q[log φ].
        log_phi_per_beta: E_q[log φ]/β, the same scale for every power β of one potential.
        kl_q_prior: KL(q‖p₀).
        seconds: spent on updates.
    """

    method: str
    kl_q_target: Estimate | None
    kl_target_q: Estimate | None
    log_phi: Estimate
    log_phi_per_beta: Estimate
    kl_q_prior: Estimate
    seconds: Estimate

    @property
    def num_seeds(self) -> int:
        """How many seeds."""
        return self.log_phi.n


@dataclass(frozen=True)
class Reference:
    """A certificate for log Z alone where the target differs by condition, and the run it is of."""

    run: str
    certificate: Certificate

    @staticmethod
    def read(path: Path) -> "Reference":
        """What a sweep has written.

        Raises:
            RunError: it is damaged.
        """
        found = Evaluation.read(path)
        if "certificate" not in found.certificates:
            raise RunError(f"{path} is damaged: it has no certificate; delete it and sweep again")
        return Reference(str(load_json(path).get("run")), found.certificates["certificate"])


class Pooled:
    """The results of a sweep's finished runs.

    Attributes:
        name: the folder's.
        asked: what was asked.
        results: of every finished run.
        num_missing: runs that are not finished.
        reference: whose log Z counts where the target differs by condition; None elsewhere, and until it is there.
    """

    def __init__(self, folder: SweepFolder) -> None:
        self.name, self.asked = folder.path.resolve().name, folder.asked
        done = [cell for cell in folder.cells if folder.finished(cell)]
        self.results = [_result(folder, cell) for cell in done]
        self.num_missing = len(folder.cells) - len(done)
        self.reference = Reference.read(folder.reference) if folder.reference.exists() else None

    @property
    def beta(self) -> float:
        """The potential's power."""
        return float(self.asked["target"]["beta"])

    @property
    def methods(self) -> list[str]:
        """Those with a finished run, in order."""
        found = {result.cell.method for result in self.results}
        return [method for method in self.asked["methods"] if method in found]

    @cached_property
    def midpoints(self) -> list[float]:
        """The midpoint of every run's main sandwich, but for those that are infinite and say nothing."""
        sandwiches = [r.after.bounds for r in self.results if main_bounds(r.after.bounds).upper is not None]
        values = [best_log_Z(bounds).value for bounds in sandwiches]
        return [value for value in values if math.isfinite(value)]

    @cached_property
    def log_Z(self) -> float | None:
        """The reference's if there is one, else their median; None without exact samples."""
        if self.reference is not None:
            return self.reference.certificate.divergences.log_Z.value
        return statistics.median(self.midpoints) if self.midpoints else None

    @property
    def conditional(self) -> bool:
        """Whether the target differs by condition."""
        return any(result.after.ess_fraction is None for result in self.results)

    @property
    def best(self) -> Result:
        """The run with the least KL(q‖σ) + KL(σ‖q), which is G − F whatever log Z is."""

        def total(result: Result) -> float:
            found = result.after.divergences
            return math.inf if found.g is None else found.g.value - found.f.value

        return min(self.results, key=total)

    def of(self, method: str) -> list[Result]:
        """A method's results."""
        return [result for result in self.results if result.cell.method == method]

    @cached_property
    def rows(self) -> list[Row]:
        """A summary of each method."""
        return [self._row(method, self.of(method)) for method in self.methods]

    def _row(self, method: str, results: list[Result]) -> Row:
        found = [result.after for result in results]
        return Row(
            method,
            over_seeds(map(self.kl_q_target, found)),
            over_seeds(map(self.kl_target_q, found)),
            student([c.divergences.log_phi.value for c in found]),
            student([c.divergences.log_phi.value / self.beta for c in found]),
            student([c.divergences.kl_q_prior.value for c in found]),
            student([result.seconds for result in results]),
        )

    def kl_q_target(self, certificate: Certificate) -> float | None:
        """KL(q‖σ) with the pooled log Z; None without exact samples."""
        found = certificate.divergences
        if self.conditional and self.reference is None:
            return found.kl_q_target.value
        return None if self.log_Z is None else self.log_Z - found.f.value

    def kl_target_q(self, certificate: Certificate) -> float | None:
        """KL(σ‖q) with the pooled log Z; None without exact samples."""
        found = certificate.divergences
        if self.conditional and self.reference is None:
            return None if found.kl_target_q is None else found.kl_target_q.value
        return None if self.log_Z is None or found.g is None else found.g.value - self.log_Z

    def curve(self, method: str, kl: Callable[[Certificate], float | None]) -> list[tuple[int, Estimate]]:
        """`kl` over the method's seeds against updates; empty if nothing was certified during training."""
        rows = [result.during for result in self.of(method)]
        numbers = sorted({number for during in rows for number in during})
        points = [(number, over_seeds(kl(during[number]) for during in rows if number in during)) for number in numbers]
        return [(number, estimate) for number, estimate in points if estimate is not None]

    @property
    def has_curves(self) -> bool:
        """Whether there is a KL during training to show."""
        return any(self.curve(method, self.kl_q_target) for method in self.methods)

    def bounds(self, method: str, name: str, smc: bool, side: str) -> list[tuple[int, Estimate]]:
        """Bounds on log Z over the method's seeds against particles.

        Args:
            method: its loss.
            name: which certificate: "after" or "every_step".
            smc: those of SMC, else of importance sampling.
            side: "lower" or "upper".
        """
        found = [result.certificates[name] for result in self.of(method) if name in result.certificates]
        kept = [b for c in found for b in c.bounds if b.method == ("smc" if smc else "iwae")]
        values: dict[int, list[float]] = {}
        for each in kept:
            bound: Estimate | None = getattr(each, side)
            if bound is not None:
                values.setdefault(each.num_particles, []).append(bound.value)
        return [(count, student(values[count])) for count in sorted(values)]


def over_seeds(values: Iterable[float | None]) -> Estimate | None:
    """The mean of those that are there; None if none is."""
    found = [value for value in values if value is not None]
    return student(found) if found else None


def read(path: Path) -> Pooled:
    """The results of a sweep, as far as it is done.

    Raises:
        RunError: there is no sweep, or a file is corrupt.
    """
    return Pooled(SweepFolder.open(path))


def _result(folder: SweepFolder, cell: Cell) -> Result:
    run = folder.run(cell)
    run.check_done()
    found = Evaluation.read(run.certificate)
    if "after" not in found.certificates:
        raise RunError(f"{run.certificate} has no certificate of the run's twist; delete it and sweep again")
    rows = run.metrics()
    return Result(
        cell,
        found.certificates,
        during(rows, run.path / "metrics.jsonl"),
        math.fsum(row["seconds"] for row in rows if row["kind"] == "update"),
    )
