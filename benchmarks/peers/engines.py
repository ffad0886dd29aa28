"""What the scripts of inference engines share: draws from p₀, weighed by φ as in `best_of_n`, and converted models.

N = --particles sequences go on from one prompt that is read once, at temperature 1 with nothing cut off, and an end of
sequence is a token like any other, so that every system makes the same N × T tokens.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from measure import Outcome, Sampler, Settings
from problem import Problem

MODELS = Path(__file__).parent / ".models"
SHORT = {"float32": "f32", "bfloat16": "bf16"}

Draw = Callable[[int, int, int], Sequence[Sequence[int]]]
"""(seed, N, T) → N sequences of T tokens."""


def weighed(problem: Problem, draw: Draw) -> Sampler:
    """A sampler whose Ẑ is the mean of φ over draws from p₀."""

    def sample(seed: int, num_samples: int, num_tokens: int) -> Outcome:
        tokens = torch.tensor(draw(seed, num_samples, num_tokens))
        if tokens.shape != (num_samples, num_tokens):
            raise RuntimeError(f"{tuple(tokens.shape)} tokens were made, not {num_samples} × {num_tokens}")
        phi = problem.log_phi(tokens).exp()
        return Outcome(
            float(phi.mean().log()), {"phi_mean": float(phi.mean()), "phi_square_mean": float(phi.square().mean())}
        )

    return sample


def converted(settings: Settings, kind: str, write: Callable[[Path], None]) -> Path:
    """The model in an engine's own format, under `.models`; the first call writes it."""
    place = MODELS / f"{settings.model.name}.{kind}"
    if not place.exists():
        MODELS.mkdir(exist_ok=True)
        scratch = place.with_name(f"unfinished-{place.name}")
        write(scratch)
        scratch.replace(place)
    return place
