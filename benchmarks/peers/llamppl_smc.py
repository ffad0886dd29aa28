"""llamppl: `smc_standard` over a model that scores each token it samples, with the HF backend.

Each step samples from p₀ with the locally optimal proposal and scores log f. Fast path: one batch for all particles,
no waiting, and the prompt's keys and values cached, as for genlm-control, whose backend this is. The next-token
distribution is `Transformer`, which asks the backend's cache, and not `LMContext`, which copies arrays as long as the
vocabulary with each particle and runs the network once more after the last token.
"""

import asyncio

import numpy as np
from llamppl import CachedCausalLM, LogCategorical, Model, Transformer, smc_standard  # type: ignore[import-not-found]
from measure import Outcome, Sampler, Settings, measure
from numpy.typing import NDArray
from problem import DTYPES, ESS_THRESHOLD, make_problem


class Lipogram(Model):  # type: ignore[misc]
    """Exactly `num_tokens` tokens, each scored with log f."""

    def __init__(self, lm: CachedCausalLM, prompt: list[int], log_f: NDArray[np.float32], num_tokens: int) -> None:
        super().__init__()
        self.lm, self.log_f, self.num_tokens = lm, log_f, num_tokens
        self.tokens = list(prompt)
        self.end = len(prompt) + num_tokens

    def immutable_properties(self) -> set[str]:
        """What a copy of a particle may share."""
        return {"lm", "log_f"}

    async def step(self) -> None:
        """One more token."""
        log_p = await self.lm.next_token_logprobs(self.tokens)
        proposal = LogCategorical(log_p + self.log_f)
        token = int(await self.sample(Transformer(self.lm, self.tokens), proposal=proposal))
        self.score(float(self.log_f[token]))
        self.tokens.append(token)
        if len(self.tokens) == self.end:
            self.finish()


def load(settings: Settings) -> Sampler:
    """The sampler."""
    lm = CachedCausalLM.from_pretrained(
        str(settings.model),
        backend="hf",
        hf_opts={"torch_dtype": DTYPES[settings.dtype]},
        batch_size=settings.particles,
        timeout=0.0,
    )
    problem = make_problem(lm.tokenizer, settings.penalty, settings.long_prompt)
    log_f = problem.log_f.numpy()
    loop = asyncio.new_event_loop()

    def sample(seed: int, num_particles: int, num_tokens: int) -> Outcome:
        np.random.seed(seed)  # noqa: NPY002 (it draws from numpy's global generator)
        if not settings.keep_cache:
            lm.clear_cache()
        if lm.model.walk_cache(problem.prompt)[1] < len(problem.prompt):
            lm.cache_kv(problem.prompt)
        particles = loop.run_until_complete(
            smc_standard(
                Lipogram(lm, problem.prompt, log_f, num_tokens),
                num_particles,
                ess_threshold=ESS_THRESHOLD,
                resampling_method="systematic",
            )
        )
        weights = np.array([particle.weight for particle in particles], dtype=np.float64)
        return Outcome(float(np.logaddexp.reduce(weights) - np.log(num_particles)))

    return sample


if __name__ == "__main__":
    measure("llamppl", load, ("llamppl", "genlm-backend"))
