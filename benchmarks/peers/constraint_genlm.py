"""genlm-control under a hard constraint: its own automaton, and SMC over AWRS or over exact next-token weights.

AWRS (adaptive weighted rejection sampling) asks the automaton token by token; `--direct` has it weigh the whole
vocabulary. Its own end of a run (`terminate_when`) leaves texts that are not complete alive, so a critic that is silent
until the end has the last word, and the classifier speaks there, too.
"""

import asyncio
import time

import numpy as np
from genlm.control import (  # type: ignore[import-not-found]
    AWRS,
    SMC,
    BoolFSA,
    Potential,
    PromptedLLM,
    direct_token_sampler,
)
from genlm_control import reseed, run
from measure import Outcome, Sampler, Settings, measure
from problem import DTYPES
from tasks import TASKS
from tasks import Potential as Phi


class Complete(Potential):  # type: ignore[misc]
    """log φ of the whole text; nothing before."""

    def __init__(self, llm: PromptedLLM, phi: Phi) -> None:
        super().__init__(llm.vocab, tables=llm.tables)
        self.phi = phi

    async def prefix(self, context: list) -> float:  # type: ignore[type-arg]
        """log 1."""
        return 0.0

    async def complete(self, context: list) -> float:  # type: ignore[type-arg]
        """log φ."""
        return float(self.phi.log_phi([b"".join(context).decode(errors="replace")]))

    async def batch_complete(self, contexts: list):  # type: ignore[type-arg, no-untyped-def]
        """Of many texts at once."""
        return self.phi.log_phi([b"".join(each).decode(errors="replace") for each in contexts]).numpy()


def load(settings: Settings) -> Sampler:
    """The sampler. `prepare_s` is what its automaton takes."""
    task = TASKS[settings.task]
    llm = PromptedLLM.from_name(
        str(settings.model),
        backend="hf",
        hf_opts={"torch_dtype": DTYPES[settings.dtype]},
        batch_size=settings.particles,
        timeout=0.0,
    )
    llm.set_prompt_from_str(task.prompt)
    start = time.perf_counter()
    automaton = BoolFSA.from_regex(task.pattern).coerce(llm, f=b"".join)
    sampler = direct_token_sampler(llm * automaton) if settings.direct else AWRS(llm, automaton, seed=settings.seed)
    prepare_s = time.perf_counter() - start
    smc = SMC(sampler, critic=Complete(llm, Phi(task)))
    loop = asyncio.new_event_loop()

    def sample(seed: int, num_particles: int, num_tokens: int) -> Outcome:
        reseed(seed)
        llm.model.clear_cache()
        llm.model.cache_kv(llm.prompt_ids)
        sequences = loop.run_until_complete(run(smc, num_particles, num_tokens))
        alive = float(np.isfinite(sequences.log_weights).mean())
        extra = {"prepare_s": prepare_s, "satisfied": alive, "ess": float(sequences.ess) / num_particles}
        return Outcome(float(sequences.log_ml), extra)

    return sample


if __name__ == "__main__":
    measure("genlm-control", load, ("genlm-control", "genlm-backend"))
