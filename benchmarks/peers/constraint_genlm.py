"""genlm-control on a hard constraint that single tokens do not decide: its own automaton, and adaptive rejection."""

import asyncio

import numpy as np
import torch
from genlm.control import AWRS, SMC, BoolFSA, PromptedLLM  # type: ignore[import-not-found]
from measure import Outcome, Sampler, Settings, measure
from problem import CONSTRAINT, CONSTRAINT_PROMPT, DTYPES, ESS_THRESHOLD


def load(settings: Settings) -> Sampler:
    """The sampler."""
    llm = PromptedLLM.from_name(
        str(settings.model),
        backend="hf",
        hf_opts={"torch_dtype": DTYPES[settings.dtype]},
        batch_size=settings.particles,
        timeout=0.0,
    )
    llm.set_prompt_from_str(CONSTRAINT_PROMPT)
    smc = SMC(AWRS(llm, BoolFSA.from_regex(CONSTRAINT).coerce(llm, f=b"".join), seed=settings.seed))
    loop = asyncio.new_event_loop()

    def sample(seed: int, num_particles: int, num_tokens: int) -> Outcome:
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (its resampling draws from numpy's global generator)
        llm.model.clear_cache()
        llm.model.cache_kv(llm.prompt_ids)
        sequences = loop.run_until_complete(
            smc(
                n_particles=num_particles,
                ess_threshold=ESS_THRESHOLD,
                max_tokens=num_tokens + 1,
                terminate_when=lambda context: len(context) >= num_tokens,
                resampling_method="systematic",
            )
        )
        return Outcome(float(sequences.log_ml), {"ess": float(sequences.ess)})

    return sample


if __name__ == "__main__":
    measure("genlm-control", load, ("genlm-control", "genlm-backend"))
