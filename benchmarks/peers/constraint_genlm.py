"""genlm-control on a hard constraint that single tokens do not decide: its own automaton, and adaptive rejection."""

import asyncio

from genlm.control import AWRS, SMC, BoolFSA, PromptedLLM  # type: ignore[import-not-found]
from genlm_control import reseed, run
from measure import Outcome, Sampler, Settings, measure
from problem import CONSTRAINT, CONSTRAINT_PROMPT, DTYPES


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
        reseed(seed)
        llm.model.clear_cache()
        llm.model.cache_kv(llm.prompt_ids)
        sequences = loop.run_until_complete(run(smc, num_particles, num_tokens))
        return Outcome(float(sequences.log_ml), {"ess": float(sequences.ess)})

    return sample


if __name__ == "__main__":
    measure("genlm-control", load, ("genlm-control", "genlm-backend"))
