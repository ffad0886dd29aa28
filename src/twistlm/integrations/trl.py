"""TRL: certificates of a policy while it is trained, potentials as rewards, posterior samples as rollouts::

    trainer = GRPOTrainer(model, reward_funcs=reward(target), …)
    trainer.add_callback(CertifyCallback(trainer, target, every=20))

A policy that is trained on E_q[log φ] alone ends where φ is largest; with β times KL(q‖p₀) its optimum is p₀φ^(1/β).
The certificate says how far it is from the posterior σ ∝ p₀φ both ways, as it is being trained.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from twistlm.certificates.certificate import Certificate
from twistlm.core.errors import ConfigError, NoneAcceptedError
from twistlm.core.rng import Rng
from twistlm.integrations.answers import sampler_of, target_of
from twistlm.models.base import BaseLM
from twistlm.models.chats import Chat
from twistlm.models.loaded import as_base_lm
from twistlm.potentials.base import evaluate
from twistlm.runs.certify import certify
from twistlm.runs.run import Run
from twistlm.sampling.cases import Case
from twistlm.sampling.exact.collection import Collection
from twistlm.sampling.target import Target

# A reward must be finite.
LEAST = -50.0

Reward = Callable[..., list[float]]


def reward(target: Target, *, least: float = LEAST) -> Reward:
    """log φ of completions as a reward function of TRL, called `log_phi` in its logs.

    Args:
        target: whose potential it is; prompts may be others than its own.
        least: in place of what is below, −∞ for one.
    """

    def log_phi(prompts: Sequence[Any], completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        values = evaluate(target.bound_potential, _encoded(target, prompts), _whole(target, completion_ids))
        found: list[float] = values.clamp_min(least).tolist()
        return found

    return log_phi


class Rollouts:
    """Posterior samples in place of the policy's own: TRL's `rollout_func`.

    Each completion is chosen by weight from a run of SMC of its own; `log_weights` (log Ẑ of that run) reaches the
    reward functions as a keyword. TRL takes completions for the policy's own and corrects for nothing: the gradient is
    that of learning from σ's samples, not of the reward under the policy.

    Args:
        run: of which the samples are; or a target, with what its constraints know.
        num_particles: N of each run of SMC.
        seed: of the samples.
    """

    def __init__(self, run: Run | Target, *, num_particles: int = 32, seed: int = 0) -> None:
        self.target, self.sampler, self.num_particles = target_of(run), sampler_of(run), num_particles
        self.rng, self.calls = Rng(seed, ("rollouts",)), 0

    def __call__(self, prompts: Sequence[Any], trainer: Any) -> dict[str, list[Any]]:
        """What TRL asks for, one completion for each prompt, repeated as they are."""
        self.calls += 1
        encoded = _encoded(self.target, prompts)
        cases = [Case(prompt) for prompt in encoded]
        chosen = self.sampler.choose(self.rng.fork("call", self.calls), cases, self.num_particles)
        samples = chosen.samples
        lengths = samples.mask.sum(1).tolist()
        return {
            "prompt_ids": [prompt.tolist() for prompt in encoded],
            "completion_ids": [row[:n] for row, n in zip(samples.tokens.tolist(), lengths, strict=True)],
            "logprobs": [row[:n] for row, n in zip(samples.log_p.tolist(), lengths, strict=True)],
            "log_weights": chosen.log_Z_hat.tolist(),
        }


class CertifyCallback(TrainerCallback):
    """Certifies the policy before the first step, after every so many, and at the end, into the trainer's own logs.

    Rows have `twistlm/log_Z`, `twistlm/kl_q_target` (what the policy does and σ would not), `twistlm/kl_target_q` (what
    it misses: a mode that is dropped), `twistlm/kl_q_prior`, `twistlm/phi` (E_q[φ]) and `twistlm/log_phi`, each with
    `_low` and `_high`, where they are known. The policy is copied for it; its training goes on as if nothing had been.

    Args:
        trainer: of TRL, or any trainer of transformers with a causal language model.
        target: σ, on the base model as it was before training: another object than the policy.
        every: steps.
        num_draws: base draws, collected once, for exact samples and log Z.
        seed: of everything random.
        **spending: as for `twistlm.certify`: num_samples, num_particles, budget.

    Attributes:
        certificates: by the number of steps.
    """

    def __init__(
        self, trainer: Any, target: Target, *, every: int = 50, num_draws: int = 4096, seed: int = 1, **spending: Any
    ) -> None:
        if every < 1:
            raise ConfigError(f"every must be at least 1, not {every}")
        self.trainer, self.target, self.every, self.num_draws, self.seed = trainer, target, every, num_draws, seed
        self.spending: Mapping[str, Any] = {"num_particles": (16,), "num_samples": 512, "budget": 512, **spending}
        self.certificates: dict[int, Certificate] = {}
        self._draws: Collection | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Collect draws of the base model, and certify what there is."""
        try:
            self._draws = self.target.collect(Rng(self.seed, ("callback",)), max_draws=self.num_draws)
        except NoneAcceptedError as error:
            self._draws = error.collection
        self._certify(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Certify, if it is time."""
        if state.global_step % self.every == 0:
            self._certify(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Certify what has come out."""
        self._certify(state.global_step)

    def _certify(self, step: int) -> None:
        # Training goes on with torch's random numbers where it left them.
        with torch.random.fork_rng():
            self._certified(step)

    def _certified(self, step: int) -> None:
        if step in self.certificates or not self.trainer.is_world_process_zero():
            return
        found = certify(self.target, self._policy(), draws=self._draws, seed=self.seed + step, **self.spending)
        self.certificates[step] = found
        names = ("log_Z", "kl_q_target", "kl_target_q", "kl_q_prior", "phi", "log_phi")
        known = {name: found.estimates[name] for name in names}
        self.trainer.log(
            {
                f"twistlm/{name}{end}": value
                for name, estimate in known.items()
                if estimate is not None and estimate.is_known
                for end, value in (("", estimate.value), ("_low", estimate.low), ("_high", estimate.high))
            }
        )

    def _policy(self) -> BaseLM:
        """A copy of the policy as it is, with its adapters merged."""
        policy: Any = copy.deepcopy(self.trainer.accelerator.unwrap_model(self.trainer.model))
        policy.zero_grad(set_to_none=True)
        if hasattr(policy, "merge_and_unload"):
            policy = policy.merge_and_unload()
        tokenizer = self.trainer.processing_class
        return as_base_lm((policy.to(self.target.device), getattr(tokenizer, "tokenizer", tokenizer)))


def _encoded(target: Target, prompts: Sequence[Any]) -> list[Tensor]:
    """Prompts of TRL, texts or messages, as the target's model reads them [P]; equal ones are one object, read once."""
    entries = {str(prompt): prompt if isinstance(prompt, str) else Chat(tuple(prompt)) for prompt in prompts}
    known = {key: target.encode(entry) for key, entry in entries.items()}
    return [known[str(prompt)] for prompt in prompts]


def _whole(target: Target, completions: Sequence[Sequence[int]]) -> Tensor:
    """Completions as texts of T tokens [B, T], EOS after their end.

    Raises:
        ConfigError: one has more, or fewer and was cut off.
    """
    longest, ends = max(map(len, completions)), target.lm.eos_token_ids
    if longest > target.num_tokens:
        raise ConfigError(
            f"a completion has {longest} tokens and this target's texts {target.num_tokens}; set "
            f"max_completion_length={target.num_tokens}"
        )
    cut = [len(each) for each in completions if len(each) < target.num_tokens and not set(ends).intersection(each)]
    if cut:
        raise ConfigError(
            f"a completion ends after {cut[0]} of this target's {target.num_tokens} tokens without EOS "
            f"({', '.join(map(str, ends))}), so its φ is not known; set "
            f"max_completion_length={target.num_tokens}, and let nothing but EOS end completions"
        )
    tokens = torch.full((len(completions), target.num_tokens), ends[0] if ends else 0)
    for row, completion in zip(tokens, completions, strict=True):
        row[: len(completion)] = torch.tensor(list(completion), dtype=torch.long)
    return tokens
