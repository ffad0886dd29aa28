"""A twist as a logits processor: the proposal q ∝ p₀ψ, for engines that sample token by token and know no weights."""

import sys
import weakref
from types import FrameType
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList

from twistlm.core.errors import ConfigError
from twistlm.integrations.answers import target_of
from twistlm.models.base import Decoder, DecoderState, is_end
from twistlm.sampling.target import Target
from twistlm.twists.base import Head, Twist

if TYPE_CHECKING:
    from twistlm.runs.run import Run


class TwistProcessor(LogitsProcessor):
    """Adds log ψ to the logits, so that `generate(do_sample=True, top_k=0)` draws from the proposal.

    It sees tokens and no hidden states. So it takes twists that bring what they read: those of constraints, which no
    text then breaks, and those with a network of their own. What it draws is q, not σ: weights make it σ
    (`twistlm.integrations.generate`).

    Each `generate` begins texts of its own, be it on what the last one returned. Another loop is known by its tokens
    alone: those of the last call and one more of each row go on.

    Args:
        run: a run; or a target, for its constraints alone.
        pad_token_id: what prompts are padded with on the left, if they are. Where the target's own prompts begin with
            it too (it is their BOS), so does each of these.

    Raises:
        ConfigError: a twist reads the base model's hidden states, or there is none.
    """

    def __init__(self, run: "Run | Target", pad_token_id: int | None = None) -> None:
        model, target = run.sampler().model, target_of(run)
        self.num_tokens, self.pad_token_id = target.num_tokens, pad_token_id
        self.ends, self.absorbing = model.ends, model.absorbing
        self._own = 0 if pad_token_id is None else _leading(target.prompt_tokens, pad_token_id)
        self._parts = [_part(twist) for twist in (model.twist, model.constraint) if twist is not None]
        if not self._parts:
            raise ConfigError("this target has no constraint, and so nothing to add to logits; give a run")
        self._begun = 0
        self._read: Tensor | None = None
        self._ended = torch.zeros(0, dtype=torch.bool)
        self._asking: weakref.ref[LogitsProcessorList] | None = None
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
        if self._is_asked_on() and before is not None and before.equal(input_ids[:, :-1]):
            tokens = input_ids[:, -1]
            if self.absorbing is not None:
                # What stands after EOS is padding, which the text does not have.
                tokens = tokens.masked_fill(self._ended, self.absorbing)
                self._ended = is_end(tokens, self.ends)
            everyone, states = torch.arange(len(input_ids), device=input_ids.device), self._states
            self._states = [
                decoder.advance(state, everyone, tokens)
                for (_, decoder), state in zip(self._parts, states, strict=True)
            ]
            return
        self._begun, self._ended = input_ids.shape[1], torch.zeros_like(input_ids[:, 0], dtype=torch.bool)
        prompts = [
            row if self.pad_token_id is None else _unpadded(row, self.pad_token_id, self._own) for row in input_ids
        ]
        self._states = [decoder.start(prompts, (len(prompts), self.num_tokens)) for _, decoder in self._parts]

    def _is_asked_on(self) -> bool:
        """Whether it is the same `generate` that asks, or is none both times."""
        before, asking = self._asking, _asking()
        self._asking = None if asking is None else weakref.ref(asking)
        return asking is (None if before is None else before())


def _asking() -> LogitsProcessorList | None:
    """The processors of the `generate` that asks, which makes a list of its own; None in another loop.

    transformers tells a processor of nothing but tokens and scores.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not LogitsProcessorList.__call__.__code__:
        frame = frame.f_back
    if frame is None or frame.f_back is None or frame.f_back.f_globals["__name__"] != GenerationMixin.__module__:
        return None
    return frame.f_locals["self"]


def _part(twist: Twist) -> tuple[Head, Decoder]:
    if twist.decoder is None or twist.reads_conditions:
        raise ConfigError(
            "this twist reads the base model's hidden states, which a logits processor does not see; use "
            "custom_generate=twistlm.integrations.generate"
        )
    return twist.head, twist.decoder


def _unpadded(row: Tensor, padding: int, own: int) -> Tensor:
    """A prompt [P'] without what is in front of it [P], which begins with `own` tokens like it."""
    begins = _leading(row, padding)
    kept = max(own, 1) if begins == len(row) else own
    return row[max(0, begins - kept) :]


def _leading(row: Tensor, token: int) -> int:
    """How often a row [P] has a token before any other."""
    return int((row == token).long().cumprod(0).sum())
