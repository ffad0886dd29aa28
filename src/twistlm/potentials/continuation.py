"""The probability that the base model continues a sequence with given tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twistlm.errors import ConfigError, PotentialError, PromptError
from twistlm.potentials.base import BasePotential
from twistlm.registry import register
from twistlm.types import BaseLM, Prompts


@register("potential", "continuation")
@dataclass(frozen=True)
class Continuation(BasePotential):
    """φ(s) = p₀(continuation | prompt, s): sequences after which the model would go on as given.

    Attributes:
        continuation: text, encoded by the bound model on its own (mind the leading space), or token ids.
        absorbing_eos: a sequence that holds the model's EOS has ended and continues with probability 0
            (log φ = −inf); False where EOS is a token like any other.
        batch_size: distinct sequences per forward pass.

    Raises:
        ConfigError: the continuation is empty or the batch size is not positive.
    """

    continuation: str | Sequence[int]
    absorbing_eos: bool = True
    batch_size: int = 64
    log_upper_bound = 0.0

    def __post_init__(self) -> None:
        """Check the settings."""
        if len(self.continuation) == 0:
            raise ConfigError("the continuation is empty: give text or at least one token id")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {self.batch_size}")

    @torch.no_grad()
    def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """log p₀(continuation | prompt, tokens), float64 [B]; each distinct sequence is read once.

        Raises:
            PotentialError: not bound to a model, or the continuation is not in its vocabulary.
            PromptError: prompt, tokens and continuation together exceed the model's context.
        """
        if self.lm is None:
            raise PotentialError(
                "Continuation is not bound to a model: use it through twistlm.Target, or call .bind(lm) first"
            )
        suffix = self._suffix(self.lm).to(tokens.device)
        longest = max((len(prompt) for prompt in prompts), default=0) + tokens.shape[1] + len(suffix)
        if self.lm.max_length is not None and longest > self.lm.max_length:
            raise PromptError(
                f"prompt, new tokens and continuation: {longest} tokens; the model reads {self.lm.max_length}"
            )
        log_phi = torch.full((len(tokens),), -torch.inf, dtype=torch.float64, device=tokens.device)
        rows: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
        for b, (prompt, new) in enumerate(zip(prompts, tokens.tolist(), strict=True)):
            if not (self.absorbing_eos and self.lm.eos_token_id in new):
                rows.setdefault((tuple(prompt.tolist()), tuple(new)), []).append(b)
        distinct = list(rows.values())
        for start in range(0, len(distinct), self.batch_size):
            chunk = distinct[start : start + self.batch_size]
            first = [copies[0] for copies in chunk]
            values = self._log_p(self.lm, [prompts[b] for b in first], tokens[first], suffix)
            for copies, value in zip(chunk, values, strict=True):
                log_phi[copies] = value
        return log_phi

    def _suffix(self, lm: BaseLM) -> Tensor:
        """The continuation's token ids [C]."""
        ids = self.continuation
        if isinstance(ids, str):
            suffix = lm.encode(ids)
            # What the tokenizer puts in front of every text (BOS) is not part of this one.
            front = lm.encode("").tolist()
            while front and suffix[:1].tolist() == front[:1]:
                suffix, front = suffix[1:], front[1:]
        else:
            suffix = torch.tensor(list(ids), dtype=torch.long)
        if len(suffix) == 0 or suffix.min() < 0 or suffix.max() >= lm.vocab_size:
            raise PotentialError(
                f"the continuation {ids!r} is {suffix.tolist()}: not among the tokens below {lm.vocab_size}"
            )
        return suffix

    @staticmethod
    def _log_p(lm: BaseLM, prompts: Prompts, tokens: Tensor, suffix: Tensor) -> Tensor:
        """log p₀ of the suffix [b] after each sequence; one position's logits [b, V] at a time."""
        length = tokens.shape[1]
        features = lm.features(prompts, torch.cat([tokens, suffix.expand(len(tokens), -1)], 1))
        total = torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
        for i, token in enumerate(suffix.tolist()):
            logits = lm.logits(features[:, length + i]).double()
            total += logits[:, token] - logits.logsumexp(-1)
        return total
