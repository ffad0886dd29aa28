"""twistlm on a hard constraint that single tokens do not decide: its automaton's exact twist proposes and weighs."""

from measure import Outcome, Sampler, Settings, measure
from problem import CONSTRAINT, CONSTRAINT_PROMPT, ESS_THRESHOLD

from twistlm import Target
from twistlm.core.logmath import ess
from twistlm.core.rng import Rng
from twistlm.potentials import Regex


def load(settings: Settings) -> Sampler:
    """The sampler. Its twist is fitted, to 640 draws that are always the same, before anything is timed."""
    phi = Regex(CONSTRAINT, mode="fullmatch", constrain=True)
    options = {"eos": "ignore", "dtype": settings.dtype}
    target = Target(str(settings.model), phi, CONSTRAINT_PROMPT, settings.tokens, **options)
    sampler = target.sampler(ess_threshold=ESS_THRESHOLD)

    def sample(seed: int, num_particles: int, num_tokens: int) -> Outcome:
        result = sampler.smc(Rng(seed), target.cases, num_particles)
        return Outcome(float(result.log_Z_hat), {"ess": float(ess(result.particles.log_w))})

    return sample


if __name__ == "__main__":
    measure("twistlm", load, ("twistlm",))
