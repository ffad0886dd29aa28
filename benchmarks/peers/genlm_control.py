"""genlm-control: its SMC over a product of `PromptedLLM` and a potential of our own, with the HF backend.

`direct_token_sampler` draws from the product's next-token weights, which is the locally optimal proposal. Fast path:
one batch for all particles, no waiting for more queries once every particle has asked, and the prompt's keys and
values cached by `cache_kv`, which genlm-control itself never calls; `--defaults` leaves all three as they are. The
cache is emptied before each run unless `--keep-cache`: it grows without bound, and later runs would find the first
tokens of earlier ones there.
"""

import asyncio
from typing import Any

import numpy as np
import torch
from genlm.control import SMC, Potential, PromptedLLM, direct_token_sampler  # type: ignore[import-not-found]
from measure import Outcome, Sampler, Settings, measure
from problem import DTYPES, ESS_THRESHOLD, Problem, make_problem


class Product(Potential):  # type: ignore[misc]
    """Π f of the tokens so far; a text that ends by itself has weight zero."""

    def __init__(self, llm: PromptedLLM, problem: Problem) -> None:
        super().__init__(llm.vocab, tables=llm.tables)
        self.log_f = problem.log_f
        ids = torch.tensor([token.token_id for token in llm.vocab] + [problem.eos_token_id])
        self.row = problem.log_f[ids]

    async def prefix(self, context: list) -> float:  # type: ignore[type-arg]
        """Σ log f."""
        return float(sum(self.log_f[token.token_id] for token in context))

    async def complete(self, context: list) -> float:  # type: ignore[type-arg]
        """log f(EOS) = −∞."""
        return -np.inf

    async def logw_next(self, context: list):  # type: ignore[type-arg, no-untyped-def]
        """log f of every token, whatever the context."""
        return self.make_lazy_weights(self.row)

    async def batch_logw_next(self, contexts: list):  # type: ignore[type-arg, no-untyped-def]
        """The same row for each context."""
        return self.make_lazy_weights(self.row.expand(len(contexts), -1))


def reseed(seed: int) -> None:
    """Of both generators: its resampling draws from numpy's global one."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002


async def run(smc: SMC, num_particles: int, num_tokens: int) -> Any:
    """Sequences of exactly `num_tokens` tokens."""
    return await smc(
        n_particles=num_particles,
        ess_threshold=ESS_THRESHOLD,
        # The last of its tokens is the EOS that `terminate_when` appends at no weight.
        max_tokens=num_tokens + 1,
        terminate_when=lambda context: len(context) >= num_tokens,
        resampling_method="systematic",
    )


def load(settings: Settings) -> Sampler:
    """The sampler."""
    fastest = {} if settings.defaults else {"batch_size": settings.particles, "timeout": 0.0}
    llm = PromptedLLM.from_name(
        str(settings.model), backend="hf", hf_opts={"torch_dtype": DTYPES[settings.dtype]}, **fastest
    )
    problem = make_problem(llm.model.tokenizer, settings.penalty, settings.long_prompt)
    llm.prompt_ids = problem.prompt
    smc = SMC(direct_token_sampler(llm * Product(llm, problem)))
    loop = asyncio.new_event_loop()

    def sample(seed: int, num_particles: int, num_tokens: int) -> Outcome:
        reseed(seed)
        if not settings.keep_cache:
            llm.model.clear_cache()
        if not settings.defaults and llm.model.walk_cache(problem.prompt)[1] < len(problem.prompt):
            llm.model.cache_kv(problem.prompt)
        return Outcome(float(loop.run_until_complete(run(smc, num_particles, num_tokens)).log_ml))

    return sample


if __name__ == "__main__":
    measure("genlm-control", load, ("genlm-control", "genlm-backend"))
