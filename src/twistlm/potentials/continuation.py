"""The probability that the base model continues a sequence with given tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twistlm.core.errors import ConfigError, PotentialError, PromptError
from twistlm.core.plain import make_plain
from twistlm.core.registry import register
from twistlm.models.base import BaseLM, Prompts
from twistlm.potentials.base import BasePotential


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
    # By a pass of the base model over each, as if what must follow came at once.
    scores_prefixes = True

    def __post_init__(self) -> None:
        """Check the settings."""
        make_plain(self)
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
        lm = self.bound_lm()
        suffix = self._suffix(lm).to(tokens.device)
        check_length(lm, prompts, tokens.shape[1] + len(suffix))
        log_phi = torch.full((len(tokens),), -torch.inf, dtype=torch.float64, device=tokens.device)
        rows: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
        for b, (prompt, new) in enumerate(zip(prompts, tokens.tolist(), strict=True)):
            if not (self.absorbing_eos and set(lm.eos_token_ids).intersection(new)):
                rows.setdefault((tuple(prompt.tolist()), tuple(new)), []).append(b)
        distinct = list(rows.values())
        for start in range(0, len(distinct), self.batch_size):
            chunk = distinct[start : start + self.batch_size]
            first = [copies[0] for copies in chunk]
            suffixes = suffix.expand(len(first), -1)
            values = log_p_after(lm, [prompts[b] for b in first], tokens[first], suffixes)
            for copies, value in zip(chunk, values, strict=True):
                log_phi[copies] = value
        return log_phi

    def _suffix(self, lm: BaseLM) -> Tensor:
        """The continuation's token ids [C]."""
        ids = self.continuation
        if isinstance(ids, str):
            suffix = without_start(lm, lm.encode(ids))
        else:
            suffix = torch.tensor(list(ids), dtype=torch.long)
        if len(suffix) == 0 or suffix.min() < 0 or suffix.max() >= lm.vocab_size:
            raise PotentialError(
                f"the continuation {ids!r} is {suffix.tolist()}: not among the tokens below {lm.vocab_size}"
            )
        return suffix


def log_p_after(lm: BaseLM, prompts: Prompts, tokens: Tensor, suffixes: Tensor) -> Tensor:
    """log p₀(suffix | prompt, tokens) [B], float64, of suffixes [B, c]; one position's logits [B, V] at a time."""
    length = tokens.shape[1]
    features = lm.features(prompts, torch.cat([tokens, suffixes], 1))
    total = torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
    for i in range(suffixes.shape[1]):
        logits = lm.logits(features[:, length + i]).double()
        total += logits.gather(-1, suffixes[:, i : i + 1]).squeeze(-1) - logits.logsumexp(-1)
    return total


def without_start(lm: BaseLM, tokens: Tensor) -> Tensor:
    """`tokens` without what the tokenizer puts in front of every text (BOS): they are to follow another."""
    front = lm.encode("").tolist()
    while front and tokens[:1].tolist() == front[:1]:
        tokens, front = tokens[1:], front[1:]
    return tokens


def check_length(lm: BaseLM, prompts: Prompts, new: int) -> None:
    """Raise PromptError if a prompt with `new` more tokens exceeds the model's context."""
    longest = max((len(prompt) for prompt in prompts), default=0) + new
    if lm.max_length is not None and longest > lm.max_length:
        raise PromptError(f"prompt, new tokens and continuation: {longest} tokens; the model reads {lm.max_length}")
