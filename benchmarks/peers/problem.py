"""The target that every system samples from, without importing any of them.

A text is exactly T tokens after a prompt. With the letter "e" made expensive, the target is

    σ(s) = p₀(s) φ(s) / Z,   φ(s) = Π_t f(s_t),   f(v) = exp(−λ) if token v contains an "e", else 1; f(EOS) = 0.

p₀ is not renormalised: a text that ends early has φ = 0, so Z counts its probability as lost. Every system may propose
from p₀(v | prefix) f(v), which is locally optimal for this φ, and resamples systematically below half of the particles.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PENALTY = 0.5
ESS_THRESHOLD = 0.5
PROMPT = "The old lighthouse stood at the far end of the bay, and on that night"
LONG_PROMPT_TOKENS = 512
STORY = """Nobody in the village could say when the keeper had come. Some thought that he had been a sailor, others
a clerk who had lost his post, and the children were certain that he was both. He bought flour and lamp oil on the
first Monday of the month, paid in coins, and walked home along the dyke before the tide turned. In winter, when the
fog lay on the water for days, one could hear the horn as far as the mill, and people set their clocks by it. """

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Problem:
    """The target for one model.

    Attributes:
        prompt: token ids of the prompt.
        log_f: log f of every token, float32 [V]; −inf for EOS.
        eos_token_id: the token whose weight is zero.
    """

    prompt: list[int]
    log_f: Tensor
    eos_token_id: int

    def log_phi(self, tokens: Tensor) -> Tensor:
        """log φ [B] of tokens [B, T], float64."""
        return self.log_f.double()[tokens].sum(-1)


def make_problem(tokenizer: Any, penalty: float = PENALTY, long_prompt: bool = False) -> Problem:
    """The target for the model of this tokenizer, a byte-level BPE, in whose vocabulary an "e" is written as itself.

    Args:
        tokenizer: a tokenizer of transformers.
        penalty: λ.
        long_prompt: begin with as much of a story as makes the prompt `LONG_PROMPT_TOKENS` long.
    """
    prompt: list[int] = tokenizer.encode(PROMPT)
    if long_prompt:
        story: list[int] = tokenizer.encode(STORY)
        wanted = LONG_PROMPT_TOKENS - len(prompt)
        prompt = (story * (1 + wanted // len(story)))[:wanted] + prompt
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    log_f = torch.tensor([-penalty if "e" in token else 0.0 for token in tokens])
    log_f[tokenizer.eos_token_id] = -torch.inf
    return Problem(prompt, log_f, tokenizer.eos_token_id)
