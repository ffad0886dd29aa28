"""How a certificate is made: samples, sandwiches, one decision of log Z, both divergences."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from twistlm.certificates.bounds import Bounds, iwae_from_ratios, main_bounds, sandwich, width
from twistlm.certificates.certificate import Certificate
from twistlm.certificates.divergences import divergences, sides, withheld
from twistlm.certificates.evidence import FEWEST_EXACT, Evidence
from twistlm.certificates.log_Z import Source, Witness, decide, of_weights
from twistlm.certificates.spending import Effort, Spending
from twistlm.core.errors import ConfigError, ExactSamplesError
from twistlm.core.estimates import ALARM, Estimate, difference, mean
from twistlm.core.logmath import ess
from twistlm.core.progress import bar
from twistlm.core.rng import Rng
from twistlm.core.sizes import TOKEN_BYTES, check_sizes
from twistlm.sampling.cases import Case
from twistlm.sampling.exact.collection import ExactSamples
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.samples import Samples

# Runs of IWAE that a search for a tight sandwich has samples for at every N.
IWAE_RUNS = 8


def certify(
    rng: Rng, sampler: Sampler, case: Case, evidence: Evidence, spending: Spending, *, drawn: Samples | None = None
) -> Certificate:
    """Certify a sampler, and SMC with it; arguments and errors are those of `certified`."""
    return certified(rng, sampler, case, evidence, spending, drawn=drawn)[0]


def certified(
    rng: Rng, sampler: Sampler, case: Case, evidence: Evidence, spending: Spending, *, drawn: Samples | None = None
) -> tuple[Certificate, Tensor, Tensor | None]:
    """A certificate, and log p₀φ/q of the proposal's samples [n] and of the exact ones [m].

    Args:
        rng: source of randomness.
        sampler: what samples; of a target that does not differ by its condition (`certify_paired`).
        case: where.
        evidence: what is known of the target.
        spending: what it may cost.
        drawn: proposal samples that are there already; only what they lack of `num_samples` is drawn.

    Raises:
        ConfigError: a number is out of range, or a gap is asked for without exact samples.
        ExactSamplesError: fewer than `FEWEST_EXACT` exact samples.
    """
    exact, effort = evidence.exact, spending.effort
    check_sizes(TOKEN_BYTES * sampler.num_steps, num_samples=spending.num_samples)
    if exact is not None and len(exact) < FEWEST_EXACT:
        raise ExactSamplesError(
            f"a certificate needs at least {FEWEST_EXACT} exact samples, not {len(exact)}; raise --num-draws"
        )
    if spending.num_samples < max(2, *spending.num_particles):
        raise ConfigError(f"num_samples must be at least 2 and the largest num_particles, not {spending.num_samples}")
    if exact is None and effort is not None:
        raise ConfigError(
            f"gap = {effort.gap:g} needs an upper bound on log Z, and there are no exact samples; collect some, or "
            "leave gap out"
        )
    if sampler.reference is not None and "iwae" not in spending.methods:
        raise ConfigError("methods: SMC needs a twist, and the sampler is a model of its own; give iwae")
    start = time.perf_counter()
    spent = 0
    if drawn is None:
        drawn = sampler.draw(rng.fork("samples"), [case], spending.num_samples)
        spent = len(drawn)
    work = _Work(rng, sampler, case, exact, spending, drawn, spent)
    work.draw_up_to(spending.num_samples)
    bounds, stopped = (work.spend(), "") if effort is None else work.tighten(effort, start)
    witnesses = [*evidence.witnesses, *work.witnesses(bounds)]
    limits = [each for each in (sampler.ranges.high, evidence.most) if each is not None]
    decision = decide(witnesses, sampler.ranges.low, min(limits, default=None))
    kls = divergences(work.drawn, work.exact_ratios, decision.log_Z, sampler.ranges)
    # A KL whose upper end has been cut at 0 would be negative.
    negative = 0.0 in (kls.kl_q_target.high, 1.0 if kls.kl_target_q is None else kls.kl_target_q.high)
    alarm = decision.alarm or (work.contradiction(witnesses) if negative else "")
    made = Certificate(
        bounds=tuple(bounds),
        divergences=withheld(kls) if alarm else kls,
        log_Z_source=decision.source,
        ess_fraction=float(ess(work.drawn.log_ratios)) / len(work.drawn),
        num_sequences=work.spent,
        seconds=time.perf_counter() - start,
        num_tokens=work.spent * sampler.num_steps,
        stopped=stopped,
        acceptance=evidence.acceptance,
        alarm=alarm,
    )
    return made, work.drawn.log_ratios, work.exact_ratios


@dataclass
class _Work:
    """A certificate in the making.

    Attributes:
        rng, sampler, case, exact, spending: as for `certify`.
        drawn: the proposal's samples so far.
        spent: sequences drawn so far.
    """

    rng: Rng
    sampler: Sampler
    case: Case
    exact: ExactSamples | None
    spending: Spending
    drawn: Samples
    spent: int

    @cached_property
    def exact_ratios(self) -> Tensor | None:
        """log p₀φ − log q of the exact samples [m]."""
        return None if self.exact is None else self.sampler.log_ratios(self.exact.samples)

    def draw_up_to(self, count: int) -> None:
        """Have at least so many of the proposal's samples."""
        short = count - len(self.drawn)
        if short > 0:
            more = self.sampler.draw(self.rng.fork("samples", count), [self.case], short)
            self.drawn = Samples.concatenate([self.drawn, more])
            self.spent += short

    def anew(self) -> None:
        """Draw the proposal's samples again, with other random numbers, and SMC's from now on."""
        self.rng = self.rng.fork("again")
        self.drawn = self.sampler.draw(self.rng.fork("samples"), [self.case], len(self.drawn))
        self.spent += len(self.drawn)

    def sandwiches(self, num_particles: int, num_runs: int) -> list[Bounds]:
        """One by each method."""
        iwae = iwae_from_ratios(self.drawn.log_ratios, self.exact_ratios, num_particles, self.sampler.ranges)
        made = [iwae] if "iwae" in self.spending.methods else []
        if "smc" in self.spending.methods and self.sampler.reference is None:
            made.append(self._smc(num_particles, num_runs, iwae))
        return made

    def _smc(self, num_particles: int, num_runs: int, iwae: Bounds) -> Bounds:
        if self.sampler.model.is_base:
            # All weights are equal until φ comes in, so SMC never resamples: it is IWAE, and has drawn nothing.
            return replace(iwae, method="smc")
        bounds = sandwich(self.rng.fork("smc"), self.sampler, self.case, self.exact, num_particles, num_runs)
        self.spent += (1 if self.exact is None else 2) * num_particles * bounds.lower.n
        return bounds

    def spend(self) -> list[Bounds]:
        """Sandwiches at every N that was asked for."""
        bounds: list[Bounds] = []
        counts = self.spending.num_particles
        with bar("bounds on log Z", len(counts)) as report:
            for done, n in enumerate(counts):
                bounds += self.sandwiches(n, self.spending.runs(n))
                report(done + 1, f"N = {n}")
        return bounds

    def tighten(self, effort: Effort, since: float) -> tuple[list[Bounds], str]:
        """Sandwiches at doubling N until one is tight enough or the next too much; and which it was."""
        bounds: list[Bounds] = []
        n = min(self.spending.num_particles)
        num_runs = self.spending.runs(n)
        with bar("bounds on log Z", 1) as report:
            while True:
                before = self.spent
                self.draw_up_to(n * min(num_runs, IWAE_RUNS))
                made = self.sandwiches(n, num_runs)
                gap = width(main_bounds(made))
                report(0, f"N = {n}, gap {gap:.3f}")
                if gap <= effort.gap:
                    self.anew()
                    made = self.sandwiches(n, num_runs)
                    if width(main_bounds(made)) <= effort.gap:
                        return bounds + made, "gap"
                bounds += made
                # The next N takes twice what this one took, and as long as all before it.
                if (
                    self.spent + 2 * (self.spent - before) > effort.num_sequences
                    or 2 * (time.perf_counter() - since) > effort.seconds
                ):
                    return bounds, "budget"
                n *= 2

    def witnesses(self, bounds: Sequence[Bounds]) -> list[Witness]:
        """What the sampler's own weights say of log Z, and SMC with the most particles."""
        witnesses = [of_weights(self.drawn.log_ratios, self.exact_ratios, self.sampler.ranges.ratio_high)]
        runs = [b for b in bounds if b.method == "smc" and b.lowers is not None]
        if runs:
            most = max(runs, key=lambda b: b.num_particles)
            assert most.lowers is not None
            witnesses.append(Witness(Source.SMC, most.lowers, most.uppers))
        return witnesses

    def contradiction(self, witnesses: Sequence[Witness]) -> str:
        """Which KL would surely be negative; "" if none would."""
        ranges = self.sampler.ranges
        log_Z = decide(witnesses, ranges.low, ranges.high, ALARM).log_Z
        f, g = sides(self.drawn, self.exact_ratios, log_Z, ranges, ALARM)
        kls = {"KL(q‖σ)": difference(log_Z, f), "KL(σ‖q)": None if g is None else difference(g, log_Z)}
        surely = [f"{name} would be below 0: {kl}" for name, kl in kls.items() if kl is not None and kl.high < 0]
        return "; ".join(surely)


def improvement(sampler: Sampler, exact: ExactSamples) -> Estimate:
    """KL(σ‖p₀) − KL(σ‖q) on the same exact samples: log Z and most of the noise cancel."""
    asked = sampler.densities(exact.samples)
    return mean((asked.log_q - asked.log_p).sum(-1))
