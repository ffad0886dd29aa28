"""A certificate: what is known about a sampler and its target, every number with its interval."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from twistlm.bounds import METHODS, Bounds, iwae_from_ratios, main_bounds, width
from twistlm.divergences import Divergences, divergences, log_ratios, sides, withheld
from twistlm.errors import ConfigError, ExactSamplesError
from twistlm.estimates import ALARM, Estimate, difference, mean
from twistlm.evidence import Source, Witness, decide, of_weights
from twistlm.exact import ExactSamples
from twistlm.logmath import ess
from twistlm.progress import bar
from twistlm.proposals import Proposal, twist_induced
from twistlm.rng import Rng
from twistlm.subject import Sampler
from twistlm.twisted import TwistedLM
from twistlm.types import Samples

# Below this a search without a limit might not end.
LEAST_GAP = 1e-3
# Runs of IWAE that a search for a tight sandwich has samples for at every N.
IWAE_RUNS = 8


@dataclass(frozen=True)
class Certificate:
    """Bounds on log Z and divergences of one sampler.

    Attributes:
        bounds: sandwiches by method and number of particles.
        divergences: KLs, with the log Z they used and where it came from.
        log_Z_source: where the value of log Z comes from (`twistlm.evidence.Source`); its interval is by all evidence.
        ess_fraction: effective sample size of importance sampling with the proposal, per sample; None where each sample
            has a target of its own.
        num_sequences: sequences drawn from the proposal or by SMC to make this.
        seconds: wall-clock time.
        num_tokens: tokens of those sequences, each a call of the model.
        stopped: where a gap was asked for: "gap" if the sandwich is that tight, else "budget"; "" where none was.
        acceptance: share of base draws that rejection accepts, the mean of φ / sup φ; None if none were collected.
        alarm: what cannot be true at once, so that log Z and both KLs to the target are withheld; "" if nothing is.
    """

    bounds: tuple[Bounds, ...]
    divergences: Divergences
    log_Z_source: str
    ess_fraction: float | None
    num_sequences: int
    seconds: float
    num_tokens: int = 0
    stopped: str = ""
    acceptance: Estimate | None = None
    alarm: str = ""

    @property
    def smc_symmetrised_kl(self) -> float | None:
        """A bound on KL(q‖σ) + KL(σ‖q) of one sample of SMC with the most particles: the gap of its sandwich.

        In expectation (Zhao et al. 2024, section 4); with both bounds' errors. None without SMC or exact samples, and
        where the sandwich is infinitely wide.
        """
        found = [b for b in self.bounds if b.method == "smc" and b.upper is not None]
        widest = width(max(found, key=lambda b: b.num_particles)) if found else math.inf
        return widest if math.isfinite(widest) else None

    @property
    def log_Z_lower(self) -> Estimate:
        """The lower bound that counts (`twistlm.bounds.main_bounds`)."""
        return main_bounds(self.bounds).lower

    @property
    def log_Z_upper(self) -> Estimate | None:
        """The upper bound that counts; None without exact samples."""
        return main_bounds(self.bounds).upper

    def as_dict(self) -> dict[str, Any]:
        """JSON values, each estimate with its interval."""
        found = self.divergences
        return {
            "log_Z_lower": self.log_Z_lower.as_dict(),
            "log_Z_upper": _optional(self.log_Z_upper),
            "log_Z": found.log_Z.as_dict(),
            "log_Z_source": self.log_Z_source,
            "f": found.f.as_dict(),
            "g": _optional(found.g),
            "kl_q_target": found.kl_q_target.as_dict(),
            "kl_target_q": _optional(found.kl_target_q),
            "kl_q_prior": found.kl_q_prior.as_dict(),
            "log_phi": found.log_phi.as_dict(),
            "phi": found.phi.as_dict(),
            "ess_fraction": self.ess_fraction,
            "bounds": [
                {
                    "method": b.method,
                    "num_particles": b.num_particles,
                    "lower": b.lower.as_dict(),
                    "upper": _optional(b.upper),
                }
                for b in self.bounds
            ],
            "smc_symmetrised_kl": self.smc_symmetrised_kl,
            "num_sequences": self.num_sequences,
            "num_tokens": self.num_tokens,
            "stopped": self.stopped,
            "acceptance": _optional(self.acceptance),
            "alarm": self.alarm,
            "seconds": self.seconds,
        }

    @staticmethod
    def from_dict(fields: Mapping[str, Any]) -> "Certificate":
        """The inverse of `as_dict`."""

        def estimate(name: str) -> Estimate:
            return Estimate.from_dict(fields[name])

        bounds = tuple(
            Bounds(
                b["method"],
                b["num_particles"],
                Estimate.from_dict(b["lower"]),
                None if b["upper"] is None else Estimate.from_dict(b["upper"]),
            )
            for b in fields["bounds"]
        )
        found = Divergences(
            kl_q_target=estimate("kl_q_target"),
            kl_target_q=None if fields["kl_target_q"] is None else estimate("kl_target_q"),
            kl_q_prior=estimate("kl_q_prior"),
            log_phi=estimate("log_phi"),
            phi=estimate("phi"),
            log_Z=estimate("log_Z"),
            f=estimate("f"),
            g=None if fields["g"] is None else estimate("g"),
        )
        accepted = fields.get("acceptance")
        return Certificate(
            bounds, found, fields["log_Z_source"], fields["ess_fraction"], fields["num_sequences"], fields["seconds"],
            fields.get("num_tokens", 0), fields.get("stopped", ""),
            None if accepted is None else Estimate.from_dict(accepted), fields.get("alarm", ""),
        )  # fmt: skip


def _optional(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate.as_dict()


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
        for name in ("gap", "num_sequences", "seconds"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.gap < LEAST_GAP and math.isinf(self.num_sequences) and math.isinf(self.seconds):
            raise ConfigError(
                f"gap = {self.gap:g} may never be met: give max_sequences or max_seconds too, or at least {LEAST_GAP:g}"
            )


def certify(
    rng: Rng,
    subject: Sampler,
    exact: ExactSamples | None,
    *,
    num_particles: Sequence[int] = (4, 16, 64),
    num_samples: int = 512,
    budget: int = 512,
    drawn: Samples | None = None,
    witnesses: Sequence[Witness] = (),
    methods: Sequence[str] = METHODS,
    effort: Effort | None = None,
    acceptance: Estimate | None = None,
) -> Certificate:
    """Certify a sampler, and SMC with it.

    Args:
        rng: source of randomness.
        subject: what samples.
        exact: exact samples that took no part in training; None leaves KL(σ‖q) out, and bounds log Z from below only
            unless a witness bounds it from above.
        num_particles: N of the sandwiches.
        num_samples: proposal samples for F and the IWAE bounds.
        budget: sequences spent on each SMC bound at each N: budget / N runs, at least 2, at most one per exact sample.
        drawn: proposal samples that are there already, used instead of drawing `num_samples`.
        witnesses: of log Z, beside the sampler's own weights and SMC: base draws, say.
        methods: of the sandwiches. Those of "iwae" come from the samples that F and G need in any case, so without
            "smc" a certificate costs little more than the divergences.
        effort: double N from the smallest of `num_particles` on, with as many runs at each N as there, instead of
            taking them all. The bounds that are tight enough are made anew before they count: those that stopped the
            search were selected for being tight.
        acceptance: what rejection accepts, for the record.

    Raises:
        ConfigError: a number is out of range, or a gap is asked for without exact samples.
        ExactSamplesError: fewer than 2 exact samples.
    """
    if not num_particles or min(num_particles) < 1:
        raise ConfigError(f"num_particles must be at least 1 each, not {list(num_particles)}")
    if num_samples < max(2, *num_particles):
        raise ConfigError(f"num_samples must be at least 2 and the largest num_particles, not {num_samples}")
    if exact is not None and len(exact) < 2:
        raise ExactSamplesError(f"a certificate needs at least 2 exact samples, not {len(exact)}; raise --num-draws")
    if exact is None and effort is not None:
        raise ConfigError(
            f"gap = {effort.gap:g} needs an upper bound on log Z, and there are no exact samples; collect some, or "
            "leave gap out"
        )
    start = time.perf_counter()
    work = _Work(rng, subject, exact, tuple(methods), subject.draw(rng.fork("samples"), num_samples) if drawn is None
                 else drawn, num_samples if drawn is None else 0)  # fmt: skip
    stopped = ""
    if effort is None:
        bounds: list[Bounds] = []
        with bar("bounds on log Z", len(num_particles)) as report:
            for done, n in enumerate(num_particles):
                bounds += work.sandwiches(n, max(2, budget // n))
                report(done + 1, f"N = {n}")
    else:
        bounds, stopped = _tightened(work, effort, min(num_particles), max(2, budget // min(num_particles)), start)
    evidence = [*witnesses, *work.witnesses(bounds)]
    decision = decide(evidence, subject.ranges.low, subject.ranges.high)
    found = divergences(work.drawn, work.exact_ratios, decision.log_Z, subject.ranges)
    # A KL whose upper end has been cut at 0 would be negative.
    negative = 0.0 in (found.kl_q_target.high, 1.0 if found.kl_target_q is None else found.kl_target_q.high)
    alarm = decision.alarm or (work.contradiction(evidence) if negative else "")
    return Certificate(
        bounds=tuple(bounds),
        divergences=withheld(found) if alarm else found,
        log_Z_source=decision.source,
        ess_fraction=float(ess(log_ratios(work.drawn))) / len(work.drawn),
        num_sequences=work.spent,
        seconds=time.perf_counter() - start,
        num_tokens=work.spent * subject.num_steps,
        stopped=stopped,
        acceptance=acceptance,
        alarm=alarm,
    )


@dataclass
class _Work:
    """A certificate in the making.

    Attributes:
        rng, subject, exact, methods: as for `certify`.
        drawn: the proposal's samples so far.
        spent: sequences drawn so far.
    """

    rng: Rng
    subject: Sampler
    exact: ExactSamples | None
    methods: tuple[str, ...]
    drawn: Samples
    spent: int

    @cached_property
    def exact_ratios(self) -> Tensor | None:
        """log p₀φ − log q of the exact samples [m]."""
        return None if self.exact is None else self.subject.exact_ratios(self.exact)

    def draw_up_to(self, count: int) -> None:
        """Have at least so many of the proposal's samples."""
        short = count - len(self.drawn)
        if short > 0:
            self.drawn = Samples.concatenate([self.drawn, self.subject.draw(self.rng.fork("samples", count), short)])
            self.spent += short

    def anew(self) -> None:
        """Draw the proposal's samples again, with other random numbers, and SMC's from now on."""
        self.rng = self.rng.fork("again")
        self.drawn = self.subject.draw(self.rng.fork("samples"), len(self.drawn))
        self.spent += len(self.drawn)

    def sandwiches(self, num_particles: int, num_runs: int) -> list[Bounds]:
        """One by each method."""
        iwae = iwae_from_ratios(log_ratios(self.drawn), self.exact_ratios, num_particles, self.subject.ranges)
        found = [iwae] if "iwae" in self.methods else []
        if "smc" not in self.methods:
            return found
        smc = self.subject.smc_bounds(self.rng.fork("smc"), self.exact, num_particles, num_runs, iwae)
        if smc is not None:
            found.append(smc)
            # One that is IWAE under another name has drawn nothing.
            if smc.lowers is not None:
                self.spent += (1 if self.exact is None else 2) * num_particles * smc.lower.n
        return found

    def witnesses(self, bounds: Sequence[Bounds]) -> list[Witness]:
        """What the sampler's own weights say of log Z, and SMC with the most particles."""
        found = [of_weights(log_ratios(self.drawn), self.exact_ratios, self.subject.ranges.ratio_high)]
        runs = [b for b in bounds if b.method == "smc" and b.lowers is not None]
        if runs:
            most = max(runs, key=lambda b: b.num_particles)
            assert most.lowers is not None
            found.append(Witness(Source.SMC, most.lowers, most.uppers))
        return found

    def contradiction(self, evidence: Sequence[Witness]) -> str:
        """Which KL would surely be negative; "" if none would."""
        ranges = self.subject.ranges
        log_Z = decide(evidence, ranges.low, ranges.high, ALARM).log_Z
        f, g = sides(self.drawn, self.exact_ratios, log_Z, ranges, ALARM)
        kls = {"KL(q‖σ)": difference(log_Z, f), "KL(σ‖q)": None if g is None else difference(g, log_Z)}
        surely = [f"{name} would be below 0: {kl}" for name, kl in kls.items() if kl is not None and kl.high < 0]
        return "; ".join(surely)


def _tightened(work: _Work, effort: Effort, start: int, num_runs: int, since: float) -> tuple[list[Bounds], str]:
    """Sandwiches at N = start, 2·start, … until the last is tight enough or the next too much; and which it was."""
    bounds: list[Bounds] = []
    n = start
    with bar("bounds on log Z", 1) as report:
        while True:
            before = work.spent
            work.draw_up_to(n * min(num_runs, IWAE_RUNS))
            found = work.sandwiches(n, num_runs)
            gap = width(main_bounds(found))
            report(0, f"N = {n}, gap {gap:.3f}")
            if gap <= effort.gap:
                work.anew()
                return bounds + work.sandwiches(n, num_runs), "gap"
            bounds += found
            # The next N takes twice what this one took, and as long as all before it.
            if (
                work.spent + 2 * (work.spent - before) > effort.num_sequences
                or 2 * (time.perf_counter() - since) > effort.seconds
            ):
                return bounds, "budget"
            n *= 2


def improvement(model: TwistedLM, exact: ExactSamples, proposal: Proposal = twist_induced) -> Estimate:
    """KL(σ‖p₀) − KL(σ‖q) on the same exact samples: log Z and most of the noise cancel."""
    found = model.densities(exact.samples, proposal)
    return mean((found.log_q - found.log_p).sum(-1))
