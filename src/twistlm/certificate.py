"""A certificate: what is known about a sampler and its target, every number with its interval."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from twistlm.bounds import METHODS, Bounds, best_log_Z, iwae_from_ratios, log_Z_bounds, main_bounds
from twistlm.divergences import Divergences, divergences, exact_log_ratios, log_ratios, proposal_samples
from twistlm.errors import ConfigError, ExactSamplesError
from twistlm.estimates import Estimate, mean
from twistlm.exact import ExactSamples
from twistlm.logmath import ess
from twistlm.progress import bar
from twistlm.proposals import Proposal, twist_induced
from twistlm.resampling import Resampler, systematic
from twistlm.rng import Rng
from twistlm.twisted import TwistedLM
from twistlm.types import Potential, Samples


@dataclass(frozen=True)
class Certificate:
    """Bounds on log Z and divergences of one sampler.

    Attributes:
        bounds: sandwiches by method and number of particles.
        divergences: KLs, with the log Z they used and where it came from.
        log_Z_source: "main sandwich" (of the mean over conditions where targets differ), "reference", or "lower bound
            only" without exact samples.
        ess_fraction: effective sample size of importance sampling with the proposal, per sample; None where each sample
            has a target of its own.
        num_sequences: sequences drawn from the proposal or by SMC to make this.
        seconds: wall-clock time.
    """

    bounds: tuple[Bounds, ...]
    divergences: Divergences
    log_Z_source: str
    ess_fraction: float | None
    num_sequences: int
    seconds: float

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
            "num_sequences": self.num_sequences,
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
        return Certificate(
            bounds, found, fields["log_Z_source"], fields["ess_fraction"], fields["num_sequences"], fields["seconds"]
        )


def _optional(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate.as_dict()


@dataclass(frozen=True)
class Subject:
    """What is certified.

    Attributes:
        model: base model and twist; without a twist, the base model itself.
        potential: φ, bound to the model.
        prompt: the prompt's tokens.
        num_steps: T.
        proposal: q.
        resampler: scheme of SMC.
        ess_threshold: SMC resamples when ESS ≤ this fraction of N.
    """

    model: TwistedLM
    potential: Potential
    prompt: Tensor
    num_steps: int
    proposal: Proposal = twist_induced
    resampler: Resampler = systematic
    ess_threshold: float = 0.5

    def draw(self, rng: Rng, num_samples: int) -> Samples:
        """Independent proposal samples."""
        return proposal_samples(
            rng, self.model, self.potential, prompts=[self.prompt], num_samples=num_samples, num_steps=self.num_steps,
            proposal=self.proposal,
        )  # fmt: skip

    def draw_given(self, rng: Rng, conditions: Tensor) -> Samples:
        """One independent proposal sample for each of conditions [R, c]."""
        return proposal_samples(
            rng, self.model, self.potential, prompts=[self.prompt] * len(conditions), num_samples=1,
            num_steps=self.num_steps, proposal=self.proposal, conditions=conditions,
        )  # fmt: skip

    def bounds(
        self, rng: Rng, exact: ExactSamples | None, num_particles: int, num_runs: int, method: str = "smc"
    ) -> Bounds:
        """A sandwich of log Z; at most one run for each exact sample."""
        return log_Z_bounds(
            rng, self.model, self.potential, prompt=self.prompt, num_steps=self.num_steps,
            num_particles=num_particles, num_runs=num_runs if exact is None else min(num_runs, len(exact)),
            method=method, exact=exact, proposal=self.proposal, resampler=self.resampler,
            ess_threshold=self.ess_threshold,
        )  # fmt: skip


def certify(
    rng: Rng,
    subject: Subject,
    exact: ExactSamples | None,
    *,
    num_particles: Sequence[int] = (4, 16, 64),
    num_samples: int = 512,
    budget: int = 512,
    drawn: Samples | None = None,
    log_Z: Estimate | None = None,
    methods: Sequence[str] = METHODS,
) -> Certificate:
    """Certify a proposal, and SMC with it.

    Args:
        rng: source of randomness.
        subject: model, potential, prompt, proposal.
        exact: exact samples that took no part in training; None leaves only lower bounds, which then stand
            for log Z, so that KL(q‖σ) is bounded from below.
        num_particles: N of the sandwiches.
        num_samples: proposal samples for F and the IWAE bounds.
        budget: sequences spent on each SMC bound at each N: budget / N runs, at least 2, at most one per exact sample.
        drawn: proposal samples that are there already, used instead of drawing `num_samples`.
        log_Z: a reference; whichever is narrower, this or the main sandwich, is used.
        methods: of the sandwiches. Those of "iwae" come from the samples that F and G need in any case, so without
            "smc" a certificate costs little more than the divergences.

    Raises:
        ConfigError: a number is out of range.
        ExactSamplesError: fewer than 2 exact samples.
    """
    if not num_particles or min(num_particles) < 1:
        raise ConfigError(f"num_particles must be at least 1 each, not {list(num_particles)}")
    if num_samples < max(2, *num_particles):
        raise ConfigError(f"num_samples must be at least 2 and the largest num_particles, not {num_samples}")
    if exact is not None and len(exact) < 2:
        raise ExactSamplesError(f"a certificate needs at least 2 exact samples, not {len(exact)}; raise --num-draws")
    start = time.perf_counter()
    num_drawn = num_samples if drawn is None else 0
    drawn = subject.draw(rng.fork("samples"), num_samples) if drawn is None else drawn
    ratios = log_ratios(drawn)
    exact_ratios = None if exact is None else exact_log_ratios(subject.model, exact, subject.proposal)
    bounds = []
    with bar("bounds on log Z", len(num_particles)) as report:
        for done, n in enumerate(num_particles):
            iwae = iwae_from_ratios(ratios, exact_ratios, n)
            if "iwae" in methods:
                bounds.append(iwae)
            if "smc" in methods:
                bounds.append(_smc_bounds(rng, subject, exact, n, max(2, budget // n), iwae))
            report(done + 1, f"N = {n}")
    sandwich = best_log_Z(bounds) if exact is not None else main_bounds(bounds).lower
    source = "main sandwich" if exact is not None else "lower bound only"
    if log_Z is not None and (exact is None or log_Z.half_width < sandwich.half_width):
        sandwich, source = log_Z, "reference"
    sides = 1 if exact is None else 2
    spent = sum(sides * b.num_particles * b.lower.n for b in bounds if b.method == "smc")
    return Certificate(
        bounds=tuple(bounds),
        divergences=divergences(drawn, exact_ratios, sandwich),
        log_Z_source=source,
        ess_fraction=float(ess(ratios)) / len(drawn),
        num_sequences=num_drawn + (spent if subject.model.twist is not None else 0),
        seconds=time.perf_counter() - start,
    )


def _smc_bounds(
    rng: Rng, subject: Subject, exact: ExactSamples | None, num_particles: int, num_runs: int, iwae: Bounds
) -> Bounds:
    if subject.model.twist is None:
        # Without a twist all weights are equal until φ comes in at the last step, so SMC never resamples: it is IWAE.
        return replace(iwae, method="smc")
    return subject.bounds(rng.fork("smc"), exact, num_particles, num_runs)


def improvement(model: TwistedLM, exact: ExactSamples, proposal: Proposal = twist_induced) -> Estimate:
    """KL(σ‖p₀) − KL(σ‖q) on the same exact samples: log Z and most of the noise cancel."""
    found = model.densities(exact.samples, proposal)
    return mean((found.log_q - found.log_p).sum(-1))
