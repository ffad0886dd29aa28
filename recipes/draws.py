"""Texts drawn from a language model as it is."""

from torch import Tensor

from twistlm.core.rng import Rng
from twistlm.models.huggingface import HuggingFaceLM
from twistlm.sampling.cases import Case
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.twisted import TwistedLM


def draw(lm: HuggingFaceLM, prompt: str, count: int, length: int, rng: Rng) -> list[str]:
    """The prompt with `length` more tokens, or fewer where a text ends by itself; `count` times, in one batch."""
    drawn = tokens(lm, prompt, count, length, rng)
    return [prompt + text for text in lm.decode(list(drawn))]


def tokens(lm: HuggingFaceLM, prompt: str, count: int, length: int, rng: Rng) -> Tensor:
    """The new tokens [count, length]."""
    plain = Sampler(TwistedLM(lm), None, length, ess_threshold=0.0)
    return plain.draw_at_once(rng, [Case(lm.encode(prompt))], count).tokens
