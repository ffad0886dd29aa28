"""transformers best-of-N: `generate` draws from p₀, and φ weighs (importance sampling).

N = --particles is the batch of one run. A text that ends early has weight zero, and `generate` stops when all have
ended. The relative variance of a weight is recorded, from which follows how many samples give the standard error of
another sampler; with a φ that is rare it is found too small until the samples are many.
"""

import torch
from generate import draws
from measure import Outcome, Sampler, Settings, measure
from problem import DTYPES, make_problem
from transformers import AutoModelForCausalLM, AutoTokenizer


def load(settings: Settings) -> Sampler:
    """The sampler."""
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    model = AutoModelForCausalLM.from_pretrained(settings.model, dtype=DTYPES[settings.dtype]).eval()
    problem = make_problem(tokenizer, settings.penalty, settings.long_prompt)
    prompt = torch.tensor([problem.prompt])

    def sample(seed: int, num_samples: int, num_tokens: int) -> Outcome:
        torch.manual_seed(seed)
        phi = problem.log_phi(draws(model, prompt, num_samples, num_tokens, problem.eos_token_id)).exp()
        return Outcome(
            float(phi.mean().log()),
            {"phi_mean": float(phi.mean()), "phi_square_mean": float(phi.square().mean())},
        )

    return sample


if __name__ == "__main__":
    measure("transformers best-of-N", load, ())
