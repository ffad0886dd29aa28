"""A certificate: what is known about a sampler and its target, every number with its interval."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from annotated_types import MinLen
from pydantic import computed_field

from twistlm.certificates.bounds import Bounds, main_bounds, width
from twistlm.certificates.divergences import Divergences
from twistlm.certificates.log_Z import Source
from twistlm.core.estimates import Estimate
from twistlm.core.exports import frame
from twistlm.core.html import table


@dataclass(frozen=True, repr=False)
class Certificate:
    """Bounds on log Z and divergences of one sampler.

    Attributes:
        bounds: sandwiches by method and number of particles.
        divergences: KLs, with the log Z they used and where it came from.
        log_Z_source: where the value of log Z comes from; its interval is by all evidence.
        ess_fraction: effective sample size of importance sampling with the proposal, per sample; None where each sample
            has a target of its own.
        num_sequences: sequences drawn from the proposal or by SMC to make this.
        seconds: wall-clock time.
        num_tokens: tokens of those sequences, each a call of the model.
        stopped: where a gap was asked for: "gap" if the sandwich is that tight, else "budget"; "" where none was.
        acceptance: share of base draws that rejection accepts, the mean of φ / sup φ; None if none were collected.
        alarm: what cannot be true at once, so that log Z and both KLs to the target are withheld; "" if nothing is.
        by_prompt: of a set of prompts those of each, of which the rest are means over prompts that count.
    """

    # What is computed from the rest stands in files, too, and is not read.
    __pydantic_config__ = {"extra": "ignore"}  # noqa: RUF012 (pydantic's, and no field)

    bounds: Annotated[tuple[Bounds, ...], MinLen(1)]
    divergences: Divergences
    log_Z_source: Source
    ess_fraction: float | None
    num_sequences: int
    seconds: float
    num_tokens: int = 0
    stopped: str = ""
    acceptance: Estimate | None = None
    alarm: str = ""
    by_prompt: tuple["OfPrompt", ...] = ()

    @computed_field  # type: ignore[prop-decorator]
    @property
    def smc_symmetrised_kl(self) -> float | None:
        """A bound on KL(q‖σ) + KL(σ‖q) of one sample of SMC with the most particles: the gap of its sandwich.

        In expectation (Zhao et al. 2024, section 5.2); with both bounds' errors. None without SMC or exact samples, and
        where the sandwich is infinitely wide.
        """
        sandwiches = [b for b in self.bounds if b.method == "smc" and b.upper is not None]
        widest = width(max(sandwiches, key=lambda b: b.num_particles)) if sandwiches else math.inf
        return widest if math.isfinite(widest) else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def log_Z_lower(self) -> Estimate:
        """The lower bound that counts (`twistlm.certificates.bounds.main_bounds`)."""
        return main_bounds(self.bounds).lower

    @computed_field  # type: ignore[prop-decorator]
    @property
    def log_Z_upper(self) -> Estimate | None:
        """The upper bound that counts; None without exact samples."""
        return main_bounds(self.bounds).upper

    @property
    def estimates(self) -> dict[str, Estimate | None]:
        """Every number but those of single sandwiches, by name; None where it is not known."""
        kls = self.divergences
        return {
            "log_Z_lower": self.log_Z_lower,
            "log_Z_upper": self.log_Z_upper,
            "log_Z": kls.log_Z,
            "f": kls.f,
            "g": kls.g,
            "kl_q_target": kls.kl_q_target,
            "kl_target_q": kls.kl_target_q,
            "kl_q_prior": kls.kl_q_prior,
            "log_phi": kls.log_phi,
            "phi": kls.phi,
            "acceptance": self.acceptance,
        }

    @property
    def log_Z(self) -> Estimate:
        """log Z, by all the evidence there is."""
        return self.divergences.log_Z

    def rows(self) -> list[dict[str, Any]]:
        """A row for each number that is known: prompt ("" for the whole), quantity, bound and num_particles (the method
        of a sandwich and its N), value, low, high, n."""
        named = [("", self), *((each.name, each.certificate) for each in self.by_prompt)]
        columns = ("prompt", "quantity", "bound", "num_particles")
        return [
            dict(zip(columns, (prompt, *about), strict=True)) | asdict(estimate)
            for prompt, certificate in named
            for *about, estimate in certificate._numbers()
        ]

    def _numbers(self) -> Iterator[tuple[str, str, int | None, Estimate]]:
        for name, estimate in self.estimates.items():
            if estimate is not None:
                yield name, "", None, estimate
        for each in self.bounds:
            yield "log_Z_lower", each.method, each.num_particles, each.lower
            if each.upper is not None:
                yield "log_Z_upper", each.method, each.num_particles, each.upper

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` of `rows`.

        Raises:
            ConfigError: pandas is not installed.
        """
        return frame(self.rows())

    def summary(self) -> str:
        """What it says in plain words: how close the sampler is, how well log Z is known, what is wrong."""
        from twistlm.certificates.verdict import verdict

        return "\n".join(verdict(self))

    def __repr__(self) -> str:
        kls = self.divergences
        return f"Certificate(log Z {kls.log_Z}, KL(q‖σ) {kls.kl_q_target}, KL(σ‖q) {kls.kl_target_q or 'not known'})"

    def _repr_html_(self) -> str:
        """For notebooks."""
        rows = [(name, str(estimate)) for name, estimate in self.estimates.items() if estimate is not None]
        return table("Certificate (nats; 95 % intervals)", (), rows, note=self.summary())


@dataclass(frozen=True)
class OfPrompt:
    """The certificate at one prompt of a set.

    Attributes:
        name: the prompt's.
        certificate: of the sampler there.
        counts: whether the means are over it: not where φ was hardly met.
    """

    name: str
    certificate: Certificate
    counts: bool = True

    @property
    def is_met(self) -> bool:
        """Whether any draw there had φ > 0: the sampler's own, or one of those that its log Z is by."""
        return math.isfinite(self.certificate.log_Z.value)
