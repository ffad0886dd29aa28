"""A certificate: what is known about a sampler and its target, every number with its interval."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from twistlm.bounds import Bounds, best_log_Z, log_Z_from_draws, sandwiches
from twistlm.divergences import Divergences, divergences, log_ratios, proposal_samples
from twistlm.errors import ConfigError
from twistlm.estimates import Estimate
from twistlm.exact import Collection
from twistlm.logmath import ess
from twistlm.proposals import Proposal, twist_induced
from twistlm.rng import Rng
from twistlm.twisted import TwistedLM
from twistlm.types import Potential, Samples


@dataclass(frozen=True)
class Certificate:
    """Bounds on log Z and divergences of one sampler.

    Attributes:
        bounds: sandwiches by method and number of particles.
        divergences: KLs, with the log Z they used and where it came from.
        log_Z_source: "sandwich", "base draws" or "reference".
        ess_fraction: effective sample size of importance sampling with the proposal, per sample.
        num_sequences: sequences drawn from the proposal or by SMC to make this.
        seconds: wall-clock time.
    """

    bounds: tuple[Bounds, ...]
    divergences: Divergences
    log_Z_source: str  # noqa: N815
    ess_fraction: float
    num_sequences: int
    seconds: float

    @property
    def log_Z_lower(self) -> Estimate:  # noqa: N802
        """The greatest lower bound."""
        return max((b.lower for b in self.bounds), key=lambda estimate: estimate.value)

    @property
    def log_Z_upper(self) -> Estimate | None:  # noqa: N802
        """The least upper bound; None without exact samples."""
        return min((b.upper for b in self.bounds if b.upper), key=lambda estimate: estimate.value, default=None)

    def as_dict(self) -> dict[str, Any]:
        """JSON values, each estimate with its interval."""
        found = self.divergences
        return {
            "log_Z_lower": self.log_Z_lower.as_dict(),
            "log_Z_upper": _optional(self.log_Z_upper),
            "log_Z": found.log_Z.as_dict(),
            "log_Z_source": self.log_Z_source,
            "kl_q_target": found.kl_q_target.as_dict(),
            "kl_target_q": _optional(found.kl_target_q),
            "kl_q_prior": found.kl_q_prior.as_dict(),
            "log_phi": found.log_phi.as_dict(),
            "phi": found.phi.as_dict(),
            "ess_fraction": self.ess_fraction,
            "bounds": [
                {
                    "method": b.method, "num_particles": b.num_particles, "lower": b.lower.as_dict(),
                    "upper": _optional(b.upper),
                }  # fmt: skip
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
                b["method"], b["num_particles"], Estimate.from_dict(b["lower"]),
                None if b["upper"] is None else Estimate.from_dict(b["upper"]),
            )  # fmt: skip
            for b in fields["bounds"]
        )
        found = Divergences(
            kl_q_target=estimate("kl_q_target"),
            kl_target_q=None if fields["kl_target_q"] is None else estimate("kl_target_q"),
            kl_q_prior=estimate("kl_q_prior"),
            log_phi=estimate("log_phi"),
            phi=estimate("phi"),
            log_Z=estimate("log_Z"),
        )
        return Certificate(
            bounds, found, fields["log_Z_source"], fields["ess_fraction"], fields["num_sequences"], fields["seconds"]
        )


def _optional(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate.as_dict()


def certify(
    rng: Rng,
    model: TwistedLM,
    potential: Potential,
    *,
    prompt: Tensor,
    num_steps: int,
    collection: Collection | None,
    num_particles: Sequence[int] = (4, 16, 64),
    num_samples: int = 512,
    budget: int = 512,
    proposal: Proposal = twist_induced,
    log_Z: Estimate | None = None,  # noqa: N803
    max_batch: int = 512,
) -> tuple[Certificate, Samples]:
    """Certify the proposal of `model`, and SMC with it.

    Args:
        rng: source of randomness.
        model: base model and twist; without a twist, the base model itself is certified.
        potential: φ, bound to the model.
        prompt: the prompt's tokens.
        num_steps: T.
        collection: base draws and exact samples that took no part in training; None leaves only lower bounds, the
            best of which then stands for log Z, so that KL(q‖σ) is bounded from below.
        num_particles: N of the sandwiches.
        num_samples: proposal samples for F.
        budget: sequences spent on each bound at each N.
        proposal: q.
        log_Z: a reference to use instead of the tighter of the sandwich and the base draws' own estimate.
        max_batch: sequences in memory at a time.

    Returns:
        The certificate and the proposal samples that it used.
    """
    if not num_particles or min(num_particles) < 1:
        raise ConfigError(f"num_particles must be at least 1 each, not {list(num_particles)}")
    if num_samples < 2:
        raise ConfigError(f"num_samples must be at least 2 for an interval, not {num_samples}")
    start = time.perf_counter()
    exact = collection.exact if collection is not None else None
    found = sandwiches(
        rng.fork("bounds"), model, potential, num_particles=num_particles, budget=budget, prompt=prompt,
        num_steps=num_steps, exact=exact, proposal=proposal, max_batch=max_batch,
    )  # fmt: skip
    if log_Z is not None:
        source = "reference"
    elif collection is None:
        log_Z, source = max((b.lower for b in found), key=lambda e: e.value), "lower bound only"  # noqa: N806
    else:
        candidates = {"sandwich": best_log_Z(found), "base draws": log_Z_from_draws(collection.draws.log_phi)}
        source = min(candidates, key=lambda name: candidates[name].half_width)
        log_Z = candidates[source]  # noqa: N806
    drawn = proposal_samples(
        rng.fork("samples"), model, potential, prompts=[prompt], num_samples=num_samples, num_steps=num_steps,
        proposal=proposal, max_batch=max_batch,
    )  # fmt: skip
    sides = 1 if exact is None else 2
    num_sequences = num_samples + sides * sum(b.num_particles * b.lower.n for b in found)
    certificate = Certificate(
        bounds=tuple(found),
        divergences=divergences(model, drawn, exact, log_Z, proposal),
        log_Z_source=source,
        ess_fraction=float(ess(log_ratios(drawn))) / num_samples,
        num_sequences=num_sequences,
        seconds=time.perf_counter() - start,
    )
    return certificate, drawn


def improvement(
    model: TwistedLM, collection: Collection, proposal: Proposal = twist_induced
) -> Estimate:
    """KL(σ‖p₀) − KL(σ‖q) on the same exact samples: log Z and most of the noise cancel."""
    from twistlm.estimates import mean

    samples = collection.exact.samples
    found = model.densities(samples, proposal)
    gain = (found.log_q - found.log_p).sum(-1)
    return mean(gain) if math.isfinite(float(gain.sum())) else Estimate(-math.inf, -math.inf, math.inf, len(samples))
