"""A twist as a logits processor: the proposal q ∝ p₀ψ, for engines that sample token by token and know no weights."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import LogitsProcessor

from twistlm.core.errors import ConfigError
from twistlm.integrations.answers import target_of
from twistlm.models.base import Decoder, DecoderState
from twistlm.sampling.target import Target
from twistlm.twists.base import Head, Twist

if TYPE_CHECKING:
    from twistlm.runs.run import Run


class TwistProcessor(LogitsProcessor):
    """Adds log ψ to the logits, so that `generate(do_sample=True, top_k=0)` draws from the proposal.

    It sees tokens and no hidden states. So it takes twists that bring what they read: those of constraints, which no
    text then breaks, and those with a network of their own. What it draws is q, not σ: weights make it σ
    (`twistlm.integrations.generate`).

    Args:
        run: a run; or a target, for its constraints alone.
        pad_token_id: what prompts are padded with on the left, if they are.

    Raises:
        ConfigError: a twist reads the base model's hidden states, or there is none.
    """

    def __init__(self, run: "Run | Target", pad_token_id: int | None = None) -> None:
        model = run.sampler().model
        self.num_tokens, self.pad_token_id = target_of(run).num_tokens, pad_token_id
        self._parts = [_part(twist) for twist in (model.twist, model.constraint) if twist is not None]
        if not self._parts:
            raise ConfigError("this target has no constraint, and so nothing to add to logits; give a run")
        self._begun = 0
        self._read: Tensor | None = None
        self._states: list[DecoderState] = []

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits [B, V] after prompts and what has been drawn since [B, P + t].

        Raises:
            ConfigError: more tokens are drawn than the target's texts have.
        """
        self._go_on(input_ids)
        if input_ids.shape[1] - self._begun >= self.num_tokens:
            raise ConfigError(f"this target's texts have {self.num_tokens} tokens: max_new_tokens={self.num_tokens}")
        for (head, _), state in zip(self._parts, self._states, strict=True):
            scores = scores + head(state.features).to(scores)
        return scores

    def _go_on(self, input_ids: Tensor) -> None:
        """Read what is new: one token of each row, or all of another batch."""
        before, self._read = self._read, input_ids.clone()
        if before is not None and before.shape[1] + 1 == input_ids.shape[1] and before.equal(input_ids[:, :-1]):
            everyone, states = torch.arange(len(input_ids), device=input_ids.device), self._states
            self._states = [
                decoder.advance(state, everyone, input_ids[:, -1])
                for (_, decoder), state in zip(self._parts, states, strict=True)
            ]
            return
        self._begun = input_ids.shape[1]
        prompts = [row if self.pad_token_id is None else _unpadded(row, self.pad_token_id) for row in input_ids]
        self._states = [decoder.start(prompts, (len(prompts), self.num_tokens)) for _, decoder in self._parts]


def _part(twist: Twist) -> tuple[Head, Decoder]:
    if twist.decoder is None or twist.reads_conditions:
        raise ConfigError(
            "this twist reads the base model's hidden states, which a logits processor does not see; use "
            "custom_generate=twistlm.integrations.generate"
        )
    return twist.head, twist.decoder


def _unpadded(row: Tensor, padding: int) -> Tensor:
    """A prompt [P'] without what is in front of it [P]."""
    own = (row != padding).nonzero()
    return row[int(own[0]) :] if len(own) else row
