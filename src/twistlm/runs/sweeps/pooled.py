"""What a sweep found, pooled over its methods and seeds.

All runs of a sweep have one target, so they share one log Z: that of their certificates, weighted by precision, with
an error that does not shrink by their number, because they share the base draws and the exact samples. With it
KL(q‖σ) = log Z − F and KL(σ‖q) = G − log Z. Their intervals hold the scatter of F and G over seeds, the error of
log Z, and for G that of the exact samples. Where the target differs by condition, log Z is the mean over the conditions
that F and G are means over, bounded by the best run with more particles (the paper's rule for infilling), and the
shared error is that of the certificates' own KLs, which are paired by condition; until that is there, those stand as
they are.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from twistlm.certificates.certificate import Certificate
from twistlm.certificates.log_Z import Source, over_runs
from twistlm.core.estimates import Estimate, difference, exactly, student, widened
from twistlm.runs.sweeps.folder import Cell, SweepFolder


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
    """A method's results over its seeds, with what their intervals hold above; None where exact samples are wanting.

    Attributes:
        method: its loss.
        kl_q_target: KL(q‖σ).
        kl_target_q: KL(σ‖q).
        log_phi: E_q[log φ].
        log_phi_per_beta: E_q[log φ]/β, the same scale for every power β of one potential.
        kl_q_prior: KL(q‖p₀).
        seconds: spent on updates.
        num_seeds: how many there are.
    """

    method: str
    kl_q_target: Estimate | None
    kl_target_q: Estimate | None
    log_phi: Estimate
    log_phi_per_beta: Estimate
    kl_q_prior: Estimate
    seconds: Estimate
    num_seeds: int


class Pooled:
    """The results of a sweep's finished runs.

    Attributes:
        asked: what was asked.
        results: of every finished run.
        num_missing: runs that are not finished.
        reference: whose log Z counts where the target differs by condition; None elsewhere, and until it is there.
    """

    def __init__(self, folder: SweepFolder) -> None:
        self.asked = folder.asked
        done = [cell for cell in folder.cells if folder.finished(cell)]
        self.results = [_result(folder, cell) for cell in done]
        self.num_missing = len(folder.cells) - len(done)
        self.reference = folder.load_reference()

    @property
    def beta(self) -> float:
        """The potential's power."""
        return self.asked.target.beta

    @property
    def methods(self) -> list[str]:
        """Those with a finished run, in order."""
        finished = {result.cell.method for result in self.results}
        return [method for method in self.asked.methods if method in finished]

    @cached_property
    def log_Z(self) -> Estimate | None:
        """The reference's if there is one, else that of all certificates; None if nothing is finished."""
        if self.reference is not None:
            return self.reference.certificate.divergences.log_Z
        return over_runs([result.after.divergences.log_Z for result in self.results])

    @property
    def conditional(self) -> bool:
        """Whether the target differs by condition."""
        return any(result.after.log_Z_source is Source.CONDITIONS for result in self.results)

    @property
    def is_mean(self) -> bool:
        """Whether log Z is a mean over conditions or prompts, not always the same that F and G are of."""
        return self.conditional or any(result.after.log_Z_source is Source.PROMPTS for result in self.results)

    @property
    def best(self) -> Result:
        """The run with the least KL(q‖σ) + KL(σ‖q), which is G − F whatever log Z is, if both are of the same."""

        def total(result: Result) -> float:
            kls = result.after.divergences
            if kls.g is None or kls.kl_target_q is None:
                return math.inf
            several = result.after.log_Z_source is Source.PROMPTS
            return kls.kl_q_target.value + kls.kl_target_q.value if several else kls.g.value - kls.f.value

        return min(self.results, key=total)

    def of(self, method: str) -> list[Result]:
        """A method's results."""
        return [result for result in self.results if result.cell.method == method]

    @cached_property
    def rows(self) -> list[Row]:
        """A summary of each method."""
        return [self._row(method, self.of(method)) for method in self.methods]

    def _row(self, method: str, results: list[Result]) -> Row:
        certificates = [result.after for result in results]
        log_phi = over_seeds([c.divergences.log_phi for c in certificates])
        return Row(
            method,
            self.kl_q_target(certificates),
            self.kl_target_q(certificates),
            log_phi,
            log_phi.scaled(1 / self.beta),
            over_seeds([c.divergences.kl_q_prior for c in certificates]).as_divergence,
            student([result.seconds for result in results]),
            len(results),
        )

    def kl_q_target(self, certificates: Sequence[Certificate]) -> Estimate | None:
        """KL(q‖σ) over several seeds, with the pooled log Z; None without any."""
        divergences = [each.divergences for each in certificates]
        if self.log_Z is None:
            return None
        if self.is_mean:
            return self._paired([each.f for each in divergences], [each.kl_q_target for each in divergences], -1.0)
        return _if_known(difference(self.log_Z, over_seeds([each.f for each in divergences])))

    def kl_target_q(self, certificates: Sequence[Certificate]) -> Estimate | None:
        """KL(σ‖q) over several seeds, with the pooled log Z; None without exact samples."""
        divergences = [each.divergences for each in certificates]
        g = [each.g for each in divergences if each.g is not None]
        if self.log_Z is None or not g:
            return None
        if self.is_mean:
            own = [each.kl_target_q for each in divergences if each.kl_target_q is not None]
            return self._paired(g, own, 1.0)
        return _if_known(difference(_with_shared(g), self.log_Z))

    def _paired(self, side: Sequence[Estimate], own: Sequence[Estimate], sign: float) -> Estimate | None:
        """A KL where log Z is a mean, from F or G of every seed, and the certificates' own KL."""
        if self.reference is None or self.log_Z is None:
            return _if_known(_with_shared(own))
        values = [sign * (each.value - self.log_Z.value) for each in side]
        # One value, or the same from every seed, as where none learned anything: no scatter to speak of.
        scatter = student(values) if len(set(values)) > 1 else exactly(values[0], len(values))
        # Too few conditions for a KL of one's own: then the error of F or G, which has the spread of log Z in it.
        paired = all(math.isfinite(each.half_width) for each in own)
        return _if_known(widened(scatter, own if paired else side))

    def curve(self, method: str, kl: Callable[[Sequence[Certificate]], Estimate | None]) -> list[tuple[int, Estimate]]:
        """`kl` over the method's seeds against updates; empty if nothing was certified during training."""
        if self.log_Z is None or math.isinf(self.log_Z.high):
            return []
        rows = [result.during for result in self.of(method)]
        numbers = sorted({number for during in rows for number in during})
        points = [(number, kl([during[number] for during in rows if number in during])) for number in numbers]
        return [
            (number, estimate) for number, estimate in points if estimate is not None and math.isfinite(estimate.high)
        ]

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
        certificates = [result.certificates[name] for result in self.of(method) if name in result.certificates]
        kept = [b for c in certificates for b in c.bounds if b.method == ("smc" if smc else "iwae")]
        values: dict[int, list[Estimate]] = {}
        for each in kept:
            bound: Estimate | None = getattr(each, side)
            if bound is not None:
                values.setdefault(each.num_particles, []).append(bound)
        over = _with_shared if side == "upper" else over_seeds
        return [(count, over(values[count])) for count in sorted(values)]


def over_seeds(estimates: Sequence[Estimate]) -> Estimate:
    """Their mean with Student's interval.

    A single one keeps its own, and so do several that are the same, as where no seed learned anything.
    """
    same = len({each.value for each in estimates}) == 1
    return estimates[0] if same else student([each.value for each in estimates])


def _with_shared(estimates: Sequence[Estimate]) -> Estimate:
    """The same for what all seeds estimate from the same exact samples, whose error no scatter shows."""
    together = over_seeds(estimates)
    return together if together is estimates[0] else widened(together, estimates)


def _if_known(kl: Estimate) -> Estimate | None:
    divergence = kl.as_divergence
    return divergence if divergence.is_known else None


def read(path: Path) -> Pooled:
    """The results of a sweep, as far as it is done.

    Raises:
        RunError: there is no sweep, or a file is corrupt.
    """
    return Pooled(SweepFolder.open(path))


def _result(folder: SweepFolder, cell: Cell) -> Result:
    run = folder.run(cell)
    evaluation, history = run.evaluations.finished(), run.load_history()
    return Result(cell, evaluation.certificates, history.certificates, math.fsum(history.seconds))
