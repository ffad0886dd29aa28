"""Texts drawn from a language model as it is."""

from twistlm.core.rng import Rng
from twistlm.models.huggingface import HuggingFaceLM
from twistlm.sampling import smc
from twistlm.sampling.twisted import TwistedLM


def draw(lm: HuggingFaceLM, prompt: str, count: int, length: int, rng: Rng) -> list[str]:
    """The prompt with `length` more tokens, or fewer where a text ends by itself; `count` times, in one batch."""
    found = smc.run(
        rng, TwistedLM(lm), None, prompts=[lm.encode(prompt)], num_particles=count, num_steps=length, ess_threshold=0.0
    )
    return [prompt + text for text in lm.decode(list(found.particles.tokens[0]))]
