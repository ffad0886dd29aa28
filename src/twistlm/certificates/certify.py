"""How a certificate is made: samples, sandwiches, one decision of log Z, both divergences."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from twistlm.certificates.bounds import METHODS, Bounds, iwae_from_ratios, main_bounds, width
from twistlm.certificates.certificate import Certificate
from twistlm.certificates.divergences import divergences, sides, withheld
from twistlm.certificates.log_Z import Source, Witness, decide, of_weights
from twistlm.certificates.subject import Sampler
from twistlm.core.errors import ConfigError, ExactSamplesError
from twistlm.core.estimates import ALARM, Estimate, difference, mean
from twistlm.core.logmath import ess
from twistlm.core.progress import bar
from twistlm.core.rng import Rng
from twistlm.sampling.exact.collection import ExactSamples
from twistlm.sampling.proposals import Proposal, twist_induced
from twistlm.sampling.sampler import log_ratios
from twistlm.sampling.samples import Samples
from twistlm.sampling.twisted import TwistedLM

# Below this a search without a limit might not end.
LEAST_GAP = 1e-3
# Runs of IWAE that a search for a tight sandwich has samples for at every N.
IWAE_RUNS = 8


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
