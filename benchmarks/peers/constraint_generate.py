"""transformers' `generate` under a hard constraint: p₀ as it is (best-of-N), or masked by outlines (`--masked`).

Weights p₀φ/q, by the logits before and after the mask, make both importance samplers: Ẑ is their mean.
"""

import time
from typing import Any

import torch
from generate import draws
from measure import Outcome, Sampler, Settings, measure
from problem import DTYPES
from tasks import TASKS, Potential
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList


def load(settings: Settings) -> Sampler:
    """The sampler. `prepare_s` is what outlines takes to compile the pattern."""
    task = TASKS[settings.task]
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    model = AutoModelForCausalLM.from_pretrained(settings.model, dtype=DTYPES[settings.dtype]).eval()
    prompt, eos = torch.tensor([tokenizer.encode(task.prompt)]), tokenizer.eos_token_id
    start = time.perf_counter()
    processor = Masked(model, tokenizer, task.pattern) if settings.masked else None
    prepare_s, phi = time.perf_counter() - start, Potential(task)

    @torch.inference_mode()
    def sample(seed: int, num_samples: int, num_tokens: int) -> Outcome:
        torch.manual_seed(seed)
        if processor is not None:
            processor.begin()
        masking = LogitsProcessorList([] if processor is None else [processor])
        tokens = draws(model, prompt, num_samples, num_tokens, eos, logits_processor=masking)
        ended = (tokens == eos).cumsum(1)
        mask = ended - (tokens == eos).long() == 0
        texts = [tokenizer.decode(row[: int(n)]) for row, n in zip(tokens, (ended == 0).sum(1), strict=True)]
        log_phi = phi.log_phi(texts)
        # q is p₀ over the mass that the mask leaves, at each token.
        excess = torch.zeros(num_samples, dtype=torch.float64)
        if processor is not None:
            excess = -(torch.stack(processor.log_mass, 1).double() * mask).sum(1)
        log_w = log_phi - excess
        alive, weights = log_phi.isfinite(), log_w.exp()
        extra = {"prepare_s": prepare_s, "satisfied": float(alive.double().mean())}
        if bool(alive.any()):
            extra["ess"] = float(weights.sum() ** 2 / weights.square().sum()) / num_samples
            extra["excess"] = float(-log_w[alive].mean())
        return Outcome(float(weights.mean().log()), extra)

    return sample


class Masked(LogitsProcessor):  # type: ignore[misc]
    """The logits processor of outlines for a pattern, and how much of p₀ it leaves at every token."""

    def __init__(self, model: Any, tokenizer: Any, pattern: str) -> None:
        import outlines  # type: ignore[import-not-found]
        from outlines.backends.outlines_core import OutlinesCoreBackend  # type: ignore[import-not-found]

        backend = OutlinesCoreBackend(outlines.from_transformers(model, tokenizer))
        self.masks, self.log_mass = backend.get_regex_logits_processor(pattern), list[Tensor]()

    def begin(self) -> None:
        """A new batch."""
        self.masks.reset()
        self.log_mass = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Masked logits. outlines masks in place."""
        total = scores.logsumexp(-1)
        scores = self.masks(input_ids, scores)
        self.log_mass.append(scores.logsumexp(-1) - total)
        return scores


if __name__ == "__main__":
    measure("transformers", load, ("outlines", "outlines-core"))
