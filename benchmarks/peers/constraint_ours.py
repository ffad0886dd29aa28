"""twistlm under a hard constraint: its automaton's exact twist proposes and weighs; nothing is trained."""

import time

import torch
from measure import Outcome, Sampler, Settings, measure
from problem import ESS_THRESHOLD
from tasks import TASKS

from twistlm import Target
from twistlm.core.logmath import ess
from twistlm.core.rng import Rng
from twistlm.potentials import Classifier, Regex

# Draws of the twist alone, in no time that counts, for its divergence from the target.
DRAWS = 256


def load(settings: Settings) -> Sampler:
    """The sampler. `prepare_s` is what the automaton takes, from the cache or not, and the draws of its twist."""
    task = TASKS[settings.task]
    phi = Regex(task.pattern, mode="fullmatch", constrain=True)
    target_phi = phi if task.label is None else phi * Classifier("sentiment", task.label, of="continuation")
    target = Target(str(settings.model), target_phi, task.prompt, task.tokens, dtype=settings.dtype)
    target.prompt_tokens  # noqa: B018 (loads the model)
    start = time.perf_counter()
    sampler = target.sampler(ess_threshold=ESS_THRESHOLD)
    prepare_s = time.perf_counter() - start
    drawn = sampler.draw(Rng(settings.seed, ("divergence",)), target.cases, DRAWS)
    excess = (drawn.log_q - drawn.log_p).sum(-1) - drawn.log_phi
    extra = {"prepare_s": prepare_s, "satisfied": 1.0, "excess": float(excess.mean())}

    def sample(seed: int, num_particles: int, num_tokens: int) -> Outcome:
        result = sampler.smc(Rng(seed), target.cases, num_particles)
        log_w = result.particles.log_w
        alive = float(torch.isfinite(log_w).double().mean())
        return Outcome(float(result.log_Z_hat), {**extra, "satisfied": alive, "ess": float(ess(log_w)) / num_particles})

    return sample


if __name__ == "__main__":
    measure("twistlm", load, ("twistlm", "outlines-core"))
