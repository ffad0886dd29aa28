"""twistlm: base sampling, without a twist; compare `engines`."""

from collections.abc import Sequence

import torch
from engines import weighed
from measure import Sampler, Settings, measure
from problem import make_problem

from twistlm.core.rng import Rng
from twistlm.models.huggingface import load as load_lm
from twistlm.sampling import sampler as twisted
from twistlm.sampling.cases import Case
from twistlm.sampling.twisted import TwistedLM


def load(settings: Settings) -> Sampler:
    """The sampler."""
    lm = load_lm(str(settings.model), dtype=settings.dtype)
    problem = make_problem(lm.tokenizer, settings.penalty, settings.long_prompt)
    case, model = Case(torch.tensor(problem.prompt)), TwistedLM(lm, None, eos="ignore")

    def draw(seed: int, num_samples: int, num_tokens: int) -> Sequence[Sequence[int]]:
        drawn = twisted.Sampler(model, None, num_tokens).draw(Rng(seed), [case], num_samples)
        tokens: list[list[int]] = drawn.tokens.tolist()
        return tokens

    return weighed(problem, draw)


if __name__ == "__main__":
    measure("twistlm", load, ("twistlm",))
