"""twistlm: SMC with the exact running product of f as its twist, so that the proposal is p₀ f, normalised."""

import torch
from measure import Outcome, Sampler, Settings, measure
from problem import ESS_THRESHOLD, Problem, make_problem
from torch import Tensor, nn

from twistlm.core.kernels import normaliser
from twistlm.core.rng import Rng
from twistlm.models.base import DecoderState, Prompts
from twistlm.models.huggingface import load as load_lm
from twistlm.potentials.function import Function
from twistlm.sampling import sampler as twisted
from twistlm.sampling.cases import Case
from twistlm.sampling.twisted import TwistedLM
from twistlm.twists.base import Twist


class RunningSum:
    """A decoder that reads tokens and remembers Σ log f [U] of each prefix."""

    def __init__(self, log_f: Tensor) -> None:
        self.log_f = log_f

    def start(self, prompts: Prompts, capacity: tuple[int, int] = (0, 0)) -> DecoderState:
        """The sums of U prompts, which do not count."""
        return DecoderState(torch.zeros(len(prompts)))

    def advance(self, state: DecoderState, parents: Tensor, tokens: Tensor) -> DecoderState:
        """Add one token's log f to each parent's sum."""
        return DecoderState(state.features[parents] + self.log_f[tokens])

    def features(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """The sums before each of tokens [B, T]."""
        log_f = self.log_f[tokens]
        return log_f.cumsum(-1) - log_f


class ProductHead(nn.Module):
    """log ψ(prefix, v) = Σ log f of the prefix + log f(v)."""

    def __init__(self, log_f: Tensor) -> None:
        super().__init__()
        self.log_f = log_f
        self.shrinkage: Tensor
        self.register_buffer("shrinkage", torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        """[..., V] from features [...]."""
        return features.unsqueeze(-1) + self.log_f

    def gather(self, features: Tensor, tokens: Tensor) -> Tensor:
        """[...] of the chosen tokens alone."""
        return features + self.log_f[tokens]

    def start_at(self, log_psi: float) -> None:
        """Nothing here is trained."""
        raise NotImplementedError

    def log_normaliser(self, features: Tensor, logits: normaliser.Logits, rows: int) -> Tensor:
        """[n] of features [n]."""
        return normaliser.of_head(self, features, logits, rows)


def load(settings: Settings) -> Sampler:
    """The sampler."""
    lm = load_lm(str(settings.model), dtype=settings.dtype)
    target: Problem = make_problem(lm.tokenizer, settings.penalty, settings.long_prompt)
    head = ProductHead(target.log_f)
    model = TwistedLM(lm, Twist(head, head, RunningSum(target.log_f)), eos="ignore")
    potential = Function(lambda _, tokens: target.log_phi(tokens), on="tokens")
    prompt = torch.tensor(target.prompt)

    def sample(seed: int, num_particles: int, num_tokens: int) -> Outcome:
        sampler = twisted.Sampler(model, potential, num_tokens, ess_threshold=ESS_THRESHOLD)
        result = sampler.smc(Rng(seed), [Case(prompt)], num_particles)
        return Outcome(float(result.log_Z_hat))

    return sample


if __name__ == "__main__":
    measure("twistlm", load, ("twistlm",))
