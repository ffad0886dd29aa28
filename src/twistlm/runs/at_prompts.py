"""A few samples at every prompt of a set, for a reader: of the target, and of the base model to compare with."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from twistlm.core.logmath import log_mean_exp, normalise
from twistlm.core.rng import Rng
from twistlm.core.sizes import TOKEN_BYTES, check_sizes
from twistlm.runs import evidence
from twistlm.runs.texts import TextSamples
from twistlm.sampling.prompts import Entry, Prompts, shown
from twistlm.sampling.resampling import invert

if TYPE_CHECKING:
    from twistlm.runs.run import Run

TWIST, BASE = "twist, drawn by weight", "base model p₀"

# Draws of the proposal at each prompt, of which a few are kept by weight.
NUM_DRAWS = 64


def samples_at_prompts(
    run: "Run", prompts: Prompts | Entry | Iterable[Entry] | None, num_samples: int, seed: int, **options: Any
) -> dict[str, list[TextSamples]]:
    """Independent draws of the proposal, `num_samples` of them chosen by weight, and as many of the base model.

    A prompt where no draw had φ > 0 has none of the target, and ends nothing.

    Args:
        run: whose twist.
        prompts: as for `Run.evaluate`.
        num_samples: at each prompt.
        seed: of the samples.
        **options: of `Run.sampler`.

    Returns:
        By what drew them, those of each prompt, in order. What was chosen by weight has equal weights, and may be there
        twice; draws of the base model are weighted by φ within the prompt.
    """
    cases, asked = evidence.where(run, prompts)
    rng, num_draws = Rng(seed, ("samples_at_prompts",)), max(NUM_DRAWS, num_samples)
    check_sizes(TOKEN_BYTES * run.target.num_tokens, num_samples=num_samples)
    made: dict[str, list[TextSamples]] = {TWIST: [], BASE: []}
    drawn = run.sampler(**options).draw(rng.fork("twist"), cases, num_draws)
    base = run.sampler(before=True).draw(rng.fork("base"), cases, num_samples)
    for number, (name, entry) in enumerate(zip(asked.names, asked.entries, strict=True)):
        at = torch.arange(num_draws) + number * num_draws
        log_w = drawn.log_ratios[at]
        if log_w.isfinite().any():
            points = rng.fork("choose", number).uniform((1, num_samples))
            chosen = drawn.select(at[invert(normalise(log_w).unsqueeze(0), points).squeeze(0).cpu()])
            weights = torch.full((num_samples,), 1 / num_samples, dtype=torch.float64)
            texts = TextSamples.of(run.target, chosen, weights, float(log_mean_exp(log_w)), run.moves(chosen))
            made[TWIST].append(_at(texts, name, entry))
        own = base.select(torch.arange(num_samples) + number * num_samples)
        texts = TextSamples.of(
            run.target, own, normalise(own.log_phi), float(log_mean_exp(own.log_phi)), run.moves(own)
        )
        made[BASE].append(_at(texts, name, entry))
    return made


def _at(drawn: TextSamples, name: str, entry: Entry) -> TextSamples:
    return replace(drawn, prompt=shown(entry), prompt_name=name)
