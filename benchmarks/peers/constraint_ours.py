"""twistlm on a hard constraint that single tokens do not decide: `Regex` judges whole texts only, so p₀ proposes."""

from measure import Outcome, Sampler, Settings, measure
from problem import CONSTRAINT, CONSTRAINT_PROMPT, ESS_THRESHOLD

from twistlm.core.errors import DeadParticlesError
from twistlm.core.logmath import ess
from twistlm.core.rng import Rng
from twistlm.models.huggingface import load as load_lm
from twistlm.potentials.lexical import Regex
from twistlm.sampling import sampler as twisted
from twistlm.sampling.cases import Case
from twistlm.sampling.proposals import base
from twistlm.sampling.twisted import TwistedLM


def load(settings: Settings) -> Sampler:
    """The sampler."""
    lm = load_lm(str(settings.model), dtype=settings.dtype)
    potential = Regex(CONSTRAINT, mode="fullmatch", of="continuation").bind(lm)
    model = TwistedLM(lm, eos="ignore")
    prompt = lm.encode(CONSTRAINT_PROMPT)

    def sample(seed: int, num_particles: int, num_tokens: int) -> Outcome:
        try:
            sampler = twisted.Sampler(model, potential, num_tokens, proposal=base, ess_threshold=ESS_THRESHOLD)
            result = sampler.smc(Rng(seed), [Case(prompt)], num_particles)
        except DeadParticlesError:
            return Outcome(float("-inf"), {"ess": 0.0})
        return Outcome(float(result.log_Z_hat), {"ess": float(ess(result.particles.log_w))})

    return sample


if __name__ == "__main__":
    measure("twistlm", load, ("twistlm",))
